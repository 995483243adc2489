"""Text for a terminal."""


def printable(text: str) -> str:
    """The text without control characters: what stands in a transaction must not steer a terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
