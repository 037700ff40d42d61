"""What is on the wire: the records, how they are read and refused, their JSON Schemas, and logs turned into them."""

from schemas.records import ModelStamp, NextUrl, ScoredVisit, Source, VisitOutcome, WebVisit

__all__ = ["ModelStamp", "NextUrl", "ScoredVisit", "Source", "VisitOutcome", "WebVisit"]
