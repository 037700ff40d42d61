"""What a user agent says of its browser and of the device, as coarse as people speak of them.

The family comes from ua-parser, with its regular expressions (uap-core) in Rust, which read any text in linear time: half a
millisecond for one never seen, so whoever asks often remembers. The class of the device is ours: uap-core names devices
("iPhone", "SM-G960F"), not what they are.

Promises: pure, never raises.
"""

import ua_parser

LONGEST = 512  # characters that are read: beyond are only attacks
_PHONES = {"iOS", "Android", "Windows Phone", "BlackBerry OS", "KaiOS", "Symbian OS", "Firefox OS"}


def family_and_device(user_agent: str) -> tuple[str, str]:
    """Family of the browser or program ("" where unknown), and bot, tablet, phone, television, desktop or other.

    >>> family_and_device("Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0")
    ('Firefox', 'desktop')
    >>> family_and_device("Googlebot/2.1 (+http://www.google.com/bot.html)")
    ('Googlebot', 'bot')
    """
    text = user_agent[:LONGEST].encode("utf-8", "replace").decode()  # a lone surrogate is no UTF-8, and Rust refuses it
    known = ua_parser.parse(text)
    family = known.user_agent.family if known.user_agent else ""
    system = known.os.family if known.os else ""
    return family, _device(text, system, known.device.family if known.device else "")


def _device(text: str, system: str, device: str) -> str:
    if device == "Spider":
        return "bot"
    if device == "iPad" or "Tablet" in text or (system == "Android" and "Mobi" not in text and "TV" not in text):
        return "tablet"
    if (system in _PHONES and "TV" not in text) or "Mobi" in text:  # MDN: "Mobi" anywhere is a telephone
        return "phone"
    if "TV" in text:
        return "television"
    return "desktop" if system else "other"
