"""Whose fault it is: three kinds of error, each with one sentence for the person who has to act.

Lives here: the errors that end a command. A record that cannot be read ends nothing: it is
`schemas.decoding.BadEvent`, and goes to `rejected-visits`.
Promises: the message says what, where, and what to do next; it never holds a password.
"""


class ConfigError(Exception):
    """Settings that cannot be followed: a file, a flag or a variable has to be changed before trying again."""


class BrokerError(Exception):
    """Kafka refused, or lacks something that waiting will not bring; what can pass is retried, not raised."""


class StoreError(Exception):
    """Redis refused, or holds something that cannot be used; what can pass is retried, not raised."""


class StaleOffset(Exception):  # noqa: N818 - a verdict of the store, not a fault
    """The store holds another position than the one this worker moved from: somebody else owns the partition now,
    or the store lost its last writes. What was computed since is dropped and the partition is read again."""


class ModelFailed(Exception):  # noqa: N818 - the model's state is at fault, or the machine; no record and nobody's settings
    """The model cannot answer, or cannot learn, whatever it is given. It is rebuilt from the store; where it fails then
    too, the process ends."""


class Stalled(Exception):  # noqa: N818 - likewise a verdict
    """There is lag and nothing moves: the process ends non-zero so that whoever runs it starts another."""
