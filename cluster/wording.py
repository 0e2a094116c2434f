"""Numbers, sizes and times as people write them."""

from datetime import timedelta


def readable(value: object) -> str:
    """Return a value, or the first few of a list, in few digits."""
    if isinstance(value, list):
        return "[" + ", ".join(map(readable, value[:3])) + (", …]" if len(value) > 3 else "]")
    return number(value) if isinstance(value, float) else str(value)


def number(value: float) -> str:
    """Return a number with five significant digits."""
    return f"{value:.5g}"


def count(amount: int, noun: str, plural: str = "") -> str:
    """Return '1 shard' or '8 shards'."""
    return f"{amount:,} {noun if amount == 1 else plural or noun + 's'}"


def clock(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))
