"""Units of measurement: spellings, the measured quantity, and the factor to its base unit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """The measured quantity (`of`), and the `factor` to its base unit."""

    of: str
    factor: float


#: What is measured | how much of its base unit | the ways to write it.
_TABLE = """
length | 1e-06 | micrometer, micrometers, micrometre, micrometres, µm
length | 0.001 | millimeter, millimeters, millimetre, millimetres, mm, 毫米, мм
length | 0.01 | centimeter, centimeters, centimetre, centimetres, cm, 厘米, см
length | 0.0254 | in, inch, inches
length | 0.3048 | ft, foot, feet
length | 0.9144 | yd, yard, yards
length | 1.0 | meter, meters, metre, metres, m, 米, м
length | 1000.0 | kilometer, kilometers, kilometre, kilometres, km, 千米, 公里, км
length | 1609.344 | mi, mile, miles
mass | 1e-06 | microgram, micrograms, microgramme, µg
mass | 0.001 | milligram, milligrams, milligramme, mg
mass | 0.01 | centigram, centigrams, centigramme, cg
mass | 1.0 | gram, grams, gramme, g, 克, г
mass | 28.349523125 | oz, ounce, ounces
mass | 453.59237 | lb, lbs, pound, pounds
mass | 1000.0 | kilogram, kilograms, kilogramme, kg, 千克, 公斤, кг
mass | 1000000.0 | t, ton, tons, tonne, tonnes, 吨, т
volume | 1e-06 | microliter, microliters, microlitre, microlitres, µl
volume | 0.001 | milliliter, milliliters, millilitre, millilitres, ml, 毫升, мл, cm^3, cc, cubic centimeters, cubic centimetres
volume | 0.01 | centiliter, centiliters, centilitre, centilitres, cl
volume | 1.0 | liter, liters, litre, litres, l, 升, л
volume | 1000.0 | kiloliter, kiloliters, kilolitre, kilolitres, kl, cubic meters, cubic meter, m^3, cubic metres, cubic metre
power | 1.0 | watt, watts, w, 瓦, вт
power | 1000.0 | kilowatt, kilowatts, kw, 千瓦, квт
power | 1000000.0 | megawatt, megawatts
frequency | 1.0 | hertz, hz
frequency | 1000.0 | kilohertz, khz
frequency | 1000000.0 | megahertz, mhz
energy | 1.0 | joule, joules, j
energy | 1000.0 | kilojoule, kilojoules, kj
energy | 4184.0 | kcal
energy | 1000000.0 | megajoule, megajoules, mj
energy | 3600000.0 | kwh
area | 0.0001 | cm^2, square centimeters, square centimetres
area | 1.0 | square meters, square meter, m^2, sq m, square metres, square metre
area | 1000000.0 | km^2, square kilometers, square kilometres
speed | 0.2777777777777778 | kilometers per hour, km/h, kph, kmh, kilometres per hour
speed | 0.44704 | mph, miles per hour, mi/h
speed | 1.0 | meters per second, m/s, metres per second
time | 0.001 | ms, millisecond, milliseconds
time | 1.0 | s, sec, secs, second, seconds, 秒, сек
time | 60.0 | min, mins, minute, minutes, 分钟, мин
time | 3600.0 | h, hr, hrs, hour, hours, 小时, час, часа, часов
time | 86400.0 | d, day, days
time | 604800.0 | week, weeks
months | 1.0 | month, months
months | 12.0 | yr, yrs, year, years
am | 1.0 | am
pm | 1.0 | pm
o'clock | 1.0 | o'clock
angle | 1.0 | °, deg, degree, degrees
celsius | 1.0 | °c, degrees celsius, celsius
fahrenheit | 1.0 | °f, degrees fahrenheit, fahrenheit
kelvin | 1.0 | k, kelvin
data | 1.0 | b, byte, bytes
data | 1000.0 | kb, kilobyte, kilobytes
data | 1000000.0 | mb, megabyte, megabytes
data | 1000000000.0 | gb, gigabyte, gigabytes
$ | 1.0 | $, usd, dollar, dollars, us$, us dollars
€ | 1.0 | €, eur, euro, euros
£ | 1.0 | £, gbp, pounds sterling
¥ | 1.0 | ¥, cny, rmb, jpy, yen, yuan, 元
₹ | 1.0 | ₹, inr, rupee, rupees, rs
₽ | 1.0 | ₽, rub, ruble, rubles, руб
₩ | 1.0 | ₩, krw, won
money's hundredth | 1.0 | cent, cents, ¢
% | 1.0 | %, percent, per cent, percents, pct
"""


def _table() -> dict[str, Unit]:
    table: dict[str, Unit] = {}
    for line in _TABLE.strip().splitlines():
        of, factor, names = line.split(" | ")
        table |= dict.fromkeys(names.split(", "), Unit(of, float(factor)))
    return table


UNITS = _table()
MONEY = "$€£¥₹₽₩"


def unit_of(name: str) -> Unit | None:
    """The unit that is written `name`, in any case and with or without periods; None for any other word."""
    return UNITS.get(name.casefold().strip(". ")) or UNITS.get(name.casefold().replace(".", "").strip())
