"""Units of measurement by the ways they are written, each with what it measures and how much of its base unit it is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """What is measured (`of`), and the `factor` to its base unit."""

    of: str
    factor: float


def _table() -> dict[str, Unit]:
    prefixes = {
        "": ("", 1.0),
        "milli": ("m", 1e-3),
        "centi": ("c", 1e-2),
        "kilo": ("k", 1e3),
        "micro": ("µ", 1e-6),
        "mega": ("m", 1e6),
    }
    table: dict[str, Unit] = {}

    def add(of: str, factor: float, *names: str) -> None:
        for name in names:
            table.setdefault(name, Unit(of, factor))

    for prefix, (short, factor) in prefixes.items():
        small = prefix != "mega"
        if small:
            for word in ("meter", "metre"):
                add("length", factor, prefix + word, prefix + word + "s")
            add("length", factor, short + "m")
            add("mass", factor, prefix + "gram", prefix + "grams", prefix + "gramme", short + "g")
            for word in ("liter", "litre"):
                add("volume", factor, prefix + word, prefix + word + "s")
            add("volume", factor, short + "l")
        if prefix in ("", "kilo", "mega"):
            add("power", factor, prefix + "watt", prefix + "watts")
            add("frequency", factor, prefix + "hertz", short + "hz")
            add("energy", factor, prefix + "joule", prefix + "joules", short + "j")
    for word in ("meter", "metre"):
        add("area", 1.0, f"square {word}s", f"square {word}", "m^2", "sq m")
        add("volume", 1e3, f"cubic {word}s", f"cubic {word}", "m^3")
        add("speed", 1.0, f"{word}s per second", "m/s")
        add("speed", 1 / 3.6, f"kilo{word}s per hour", "km/h", "kph", "kmh")
    add("area", 1e-4, "cm^2", "square centimeters", "square centimetres")
    add("area", 1e6, "km^2", "square kilometers", "square kilometres")
    add("volume", 1e-3, "cm^3", "cc", "cubic centimeters", "cubic centimetres")
    add("speed", 0.44704, "mph", "miles per hour", "mi/h")
    add("length", 0.0254, "in", "inch", "inches")
    add("length", 0.3048, "ft", "foot", "feet")
    add("length", 0.9144, "yd", "yard", "yards")
    add("length", 1609.344, "mi", "mile", "miles")
    add("mass", 1e6, "t", "ton", "tons", "tonne", "tonnes")
    add("mass", 453.59237, "lb", "lbs", "pound", "pounds")
    add("mass", 28.349523125, "oz", "ounce", "ounces")
    add("time", 1e-3, "ms", "millisecond", "milliseconds")
    add("time", 1.0, "s", "sec", "secs", "second", "seconds")
    add("time", 60.0, "min", "mins", "minute", "minutes")
    add("time", 3600.0, "h", "hr", "hrs", "hour", "hours")
    add("time", 86400.0, "d", "day", "days")
    add("time", 604800.0, "week", "weeks")
    add("months", 1.0, "month", "months")
    add("months", 12.0, "yr", "yrs", "year", "years")
    for half in ("am", "pm", "o'clock"):
        add(half, 1.0, half)
    add("angle", 1.0, "°", "deg", "degree", "degrees")
    add("celsius", 1.0, "°c", "degrees celsius", "celsius")
    add("fahrenheit", 1.0, "°f", "degrees fahrenheit", "fahrenheit")
    add("kelvin", 1.0, "k", "kelvin")
    add("power", 1e3, "kw")
    add("power", 1.0, "w")
    add("energy", 3.6e6, "kwh")
    add("energy", 4184.0, "kcal")
    for factor, short, word in (
        (1.0, "b", "byte"),
        (1e3, "kb", "kilobyte"),
        (1e6, "mb", "megabyte"),
        (1e9, "gb", "gigabyte"),
    ):
        add("data", factor, short, word, word + "s")
    for sign, *names in (
        ("$", "usd", "dollar", "dollars", "us$", "us dollars"), ("€", "eur", "euro", "euros"), ("£", "gbp", "pounds sterling"),
        ("¥", "cny", "rmb", "jpy", "yen", "yuan", "元"), ("₹", "inr", "rupee", "rupees", "rs"), ("₽", "rub", "ruble", "rubles", "руб"),
        ("₩", "krw", "won"),
    ):  # fmt: skip
        add(sign, 1.0, sign, *names)
    add("money's hundredth", 1.0, "cent", "cents", "¢")
    add("%", 1.0, "%", "percent", "per cent", "percents", "pct")
    return table


UNITS = _table()
MONEY = "$€£¥₹₽₩"


def unit_of(name: str) -> Unit | None:
    """The unit that is written `name`, in any case and with or without periods; None for any other word."""
    return UNITS.get(name.casefold().strip(". ")) or UNITS.get(name.casefold().replace(".", "").strip())
