"""Units of raw files to those of the contract: spellings, masses, and mixing ratios at a stated temperature."""

from __future__ import annotations

from pipeline.contract import UNITS

#: Molar masses, g mol-1 (IUPAC standard atomic weights, abridged).
MOLAR_MASS = {"so2": 64.064, "no2": 46.006, "o3": 47.998, "co": 28.010}

#: Molar gas constant, J mol-1 K-1 (CODATA 2018), and standard pressure, Pa.
GAS_CONSTANT, PRESSURE = 8.314462618, 101325.0

#: Mass concentrations as a multiple of 1 ug m-3, by spelling without blanks: UDUNITS (CF) and OpenAQ's ``µg/m³``;
#: EEA's ``ug.m-3``; AirNow's ``UG/M3``; AQS' ``Micrograms/cubic meter (LC)`` and ``(25 C)``.
MASSES = {"ug/m3": 1.0, "ugm-3": 1.0, "mg/m3": 1e3, "mgm-3": 1e3, "kg/m3": 1e9, "kgm-3": 1e9}
MASSES |= {"ug.m-3": 1.0, "mg.m-3": 1e3, "UG/M3": 1.0}
MASSES |= {"Micrograms/cubicmeter(LC)": 1.0, "Micrograms/cubicmeter(25C)": 1.0}

#: Mixing ratios as a multiple of 1 ppb: UDUNITS (CF) and OpenAQ; AirNow; AQS.
RATIOS = {"ppb": 1.0, "ppm": 1e3, "ppbv": 1.0, "ppmv": 1e3, "1e-9": 1.0, "1e-6": 1e3}
RATIOS |= {"nmolmol-1": 1.0, "umolmol-1": 1e3, "molmol-1": 1e9}
RATIOS |= {"PPB": 1.0, "PPM": 1e3, "Partsperbillion": 1.0, "Partspermillion": 1e3}

_SPELLINGS = str.maketrans({"µ": "u", "μ": "u", "³": "3", " ": None, "^": None, "⁻": "-"})


def factor(pollutant: str, unit: str, celsius: float | None) -> float | None:
    """What to multiply a value in `unit` by to get the contract's unit of `pollutant`; None where that cannot be.

    Parameters
    ----------
    pollutant : name in `pipeline.contract.UNITS`.
    unit : as a file spells it, such as ``µg/m³``, ``UG/M3``, ``PPB``; capitals count, ``Mg`` is a megagram.
    celsius : temperature at which a mixing ratio is converted, at 1013.25 hPa; None allows no mixing ratio.

    Notes
    -----
    A mixing ratio x of an ideal gas is the concentration ``x M p / (R T)`` (Seinfeld and Pandis, Atmospheric Chemistry
    and Physics, 3rd edition, eq. 1.10). At 25 degrees C 1 ppb of ozone is 1.962 ug m-3.
    """
    spelled = unit.strip().translate(_SPELLINGS)
    target = 1e3 if UNITS[pollutant] == "mg m-3" else 1.0
    if spelled in MASSES:
        return MASSES[spelled] / target
    if spelled in RATIOS and celsius is not None and pollutant in MOLAR_MASS:
        return RATIOS[spelled] * _ug_per_ppb(pollutant, celsius) / target
    return None


def _ug_per_ppb(pollutant: str, celsius: float) -> float:
    moles = PRESSURE / (GAS_CONSTANT * (celsius + 273.15))  # mol m-3
    return moles * MOLAR_MASS[pollutant] * 1e-3
