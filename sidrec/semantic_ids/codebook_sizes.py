"""How many codes a level may have."""

from sidrec.errors import ConfigError

MAX_CODEBOOK_SIZE = 1 << 15  # codes are stored as int16


def check_sizes(sizes: tuple[int, ...]) -> None:
    """Refuse sizes that no codebook can have.

    Raises:
        ConfigError: If there is no level, or a size lies outside [2, 32768].
    """
    if not sizes or not all(2 <= size <= MAX_CODEBOOK_SIZE for size in sizes):
        raise ConfigError(
            f"codebook_sizes is {list(sizes)}, expected one size per level, each from 2 to "
            f"{MAX_CODEBOOK_SIZE} (codes are stored as int16); e.g. [256, 256, 256]."
        )


def check_equal_powers_of_two(sizes: tuple[int, ...]) -> int:
    """Return the number of bits of a code, the same at every level.

    Raises:
        ConfigError: If sizes differ, or are no powers of two.
    """
    check_sizes(sizes)
    bits = sizes[0].bit_length() - 1
    if set(sizes) != {1 << bits}:
        raise ConfigError(
            f"codebook_sizes is {list(sizes)}, expected one power of two for every level, "
            f"e.g. {[1 << bits] * len(sizes)}."
        )
    return bits


def refuse_few_items(num_items: int, sizes: tuple[int, ...]) -> None:
    """Refuse a catalogue with fewer items than a codebook has codes.

    Raises:
        ConfigError: If ``num_items`` is below the largest size.
    """
    if num_items < max(sizes):
        raise ConfigError(
            f"The catalogue has {num_items} items, fewer than the {max(sizes)} codes of "
            f"codebook_sizes {list(sizes)}; choose smaller sizes, e.g. about the square root of "
            "the number of items."
        )
