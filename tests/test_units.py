from __future__ import annotations

import pytest

from pipeline.sources.units import factor


@pytest.mark.parametrize(
    ("pollutant", "celsius", "expected"),
    [
        # p / (R T) = 101325 / (8.314462618 * 298.15) = 40.8740 mol m-3 at 25 degrees C, 41.5712 at 20; times g mol-1.
        ("o3", 25, 1.962),  # 47.998 * 0.0408740 = 1.96187
        ("o3", 20, 1.995),  # 47.998 * 0.0415712 = 1.99533
        ("no2", 25, 1.880),  # 46.006 * 0.0408740 = 1.88045
        ("no2", 20, 1.913),  # 46.006 * 0.0415712 = 1.91253
        ("so2", 25, 2.619),  # 64.064 * 0.0408740 = 2.61855
        ("so2", 20, 2.663),  # 64.064 * 0.0415712 = 2.66322
    ],
)
def test_one_ppb_in_ug_per_m3(pollutant, celsius, expected):
    assert factor(pollutant, "ppb", celsius) == pytest.approx(expected, abs=6e-4)
    assert factor(pollutant, "ppm", celsius) == pytest.approx(1000 * expected, abs=0.6)


def test_one_ppm_of_carbon_monoxide_in_mg_per_m3():
    # 28.010 g mol-1 * 40.8740 mol m-3 * 1e-6 = 1.14488e-3 g m-3
    assert factor("co", "ppm", 25) == pytest.approx(1.1449, abs=1e-4)
    assert factor("co", "PPB", 25) == pytest.approx(1.1449e-3, abs=1e-7)


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        *((unit, 1.0) for unit in ("ug/m3", "µg/m³", "μg/m³", "ug m-3", "µg m⁻³", "ug m^-3", "ug.m-3", "UG/M3")),
        *((unit, 1.0) for unit in ("Micrograms/cubic meter (LC)", "Micrograms/cubic meter (25 C)", " ug/m3 ")),
        *((unit, 1e3) for unit in ("mg/m3", "mg m-3", "mg.m-3")),
        ("kg m-3", 1e9),
    ],
)
def test_masses(unit, expected):
    assert factor("pm2p5", unit, None) == expected
    assert factor("co", unit, None) == expected / 1000


@pytest.mark.parametrize("unit", ["ppb", "PPB", "ppbv", "1e-9", "nmol mol-1", "Parts per billion"])
def test_mixing_ratios_need_a_temperature_and_a_gas(unit):
    assert factor("o3", unit, 25) == factor("o3", "ppb", 25)
    assert factor("o3", unit, None) is None
    assert factor("pm2p5", unit, 25) is None


@pytest.mark.parametrize("unit", ["", "Mg/m3", "MG/M3", "ng/m3", "ug", "ppt", "Ppb", "c", "C", "1", "ug/m2", "m3"])
def test_what_is_no_such_unit(unit):
    assert factor("o3", unit, 25) is None
