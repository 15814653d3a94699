"""The grid, terrain and land mask against closed forms, known places and PROJ."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyproj import CRS, Geod, Transformer

from pipeline.errors import ConfigError
from pipeline.grid import RELIEF_KM, Grid, extent, is_land, relief, terrain

NORTH_CHINA = (105, 32, 125, 45)
LAMBERT = "+proj=lcc +lat_1=30 +lat_2=60 +lat_0=39 +lon_0=115 +datum=WGS84"


def test_centres_of_the_default_domain_are_exact() -> None:
    grid = Grid(NORTH_CHINA, 0.1)
    assert grid.shape == (131, 201)
    assert grid.lat.tolist() == [round(32 + 0.1 * i, 1) for i in range(131)]
    assert grid.lon.tolist() == [round(105 + 0.1 * j, 1) for j in range(201)]
    np.testing.assert_array_equal(grid.bounds[0][1:, 0], grid.bounds[0][:-1, 1])


@pytest.mark.parametrize(("resolution", "corner"), [(1.0, 0.5), (2.5, 1.25)])
def test_cell_areas_add_up_to_the_ellipsoid(resolution: float, corner: float) -> None:
    globe = Grid((-180 + corner, -90 + corner, 180 - corner, 90 - corner), resolution)
    np.testing.assert_allclose(globe.cell_area.sum(), 510065621724088.5, rtol=1e-12)  # WGS84, Snyder 1987, table 1


def test_cell_area_of_a_cell_centred_on_the_pole_stops_at_the_pole() -> None:
    assert Grid((0, 89, 10, 90), 1.0).bounds[0][-1].tolist() == [89.5, 90.0]


def test_cell_area_equals_a_densified_geodesic_polygon() -> None:
    grid = Grid((105, 44, 107, 45), 1.0)
    (south, north), (west, east) = grid.bounds[0][1], grid.bounds[1][0]
    along = np.linspace(west, east, 2001)
    lon = np.concatenate([along, along[::-1]])
    lat = np.concatenate([np.full(2001, south), np.full(2001, north)])
    area, _ = Geod(ellps="WGS84").polygon_area_perimeter(lon, lat)
    np.testing.assert_allclose(grid.cell_area[1, 0], area, rtol=1e-7)


def test_cell_area_on_a_sphere() -> None:
    sphere = Grid((0.5, 0.5, 0.6, 1.5), 1.0, "+proj=longlat +R=6371000")
    expected = 6371000**2 * np.radians(1) * np.diff(np.sin(np.radians([0, 1, 2])))
    np.testing.assert_allclose(sphere.cell_area[:, 0], expected)


def test_land_at_known_places() -> None:
    lon, lat = np.array([116.4, 123.0, 100.2, 126.6, -30.0]), np.array([39.9, 35.0, 36.9, 45.8, 30.0])
    assert is_land(lon, lat).tolist() == [True, False, True, True, False]  # Beijing, Yellow Sea, Qinghai, Harbin


def test_a_cell_with_any_land_is_land() -> None:
    grid = Grid((119, 34, 123, 38), 0.25)
    fraction = grid.land_fraction
    assert ((fraction > 0) & (fraction < 1)).any()
    np.testing.assert_array_equal(grid.land, fraction > 0)
    west_of_qingdao, open_sea = grid.land[8, 2], grid.land[4, 16]
    assert west_of_qingdao
    assert not open_sea


def test_land_share_of_the_earth() -> None:
    globe = Grid((-178, -88, 178, 88), 4.0)
    share = np.average(globe.land_fraction, weights=globe.cell_area)
    assert share == pytest.approx(0.292, abs=0.005)


def test_terrain_at_known_places() -> None:
    places = {
        "Lhasa": (91.1, 29.65, 3900, 500),
        "Yellow Sea": (123, 35, 0, 1),
        "Beijing": (116.4, 39.9, 45, 40),
        "Dead Sea": (35.5, 31.5, -300, 120),
        "La Paz": (-68.15, -16.5, 3800, 400),
    }
    for name, (lon, lat, metres, tolerance) in places.items():
        assert terrain(lon, lat) == pytest.approx(metres, abs=tolerance), name


def test_terrain_agrees_with_pvlib_at_its_own_nodes() -> None:
    from pvlib.location import lookup_altitude

    rng = np.random.default_rng(0)
    row, column = rng.integers(0, 2160, 20), rng.integers(0, 4320, 20)
    lat, lon = 90 - (row + 0.5) / 12, -180 + (column + 0.5) / 12
    expected = [lookup_altitude(north, east) for north, east in zip(lat, lon, strict=True)]
    np.testing.assert_allclose(terrain(lon, lat), expected, atol=1e-3)


def test_terrain_is_float32_and_keeps_the_shape() -> None:
    found = terrain(np.full((2, 3), 100.0), np.full((2, 3), 30.0))
    assert (found.shape, found.dtype) == ((2, 3), np.dtype("float32"))


@given(st.floats(-90, 90), st.floats(-180, 180))
def test_terrain_goes_round_the_dateline_and_stops_at_the_poles(lat: float, lon: float) -> None:
    np.testing.assert_allclose(terrain(lon, lat), terrain(lon + 360, lat), atol=0.01)
    assert -450 <= terrain(lon, lat) <= 6700


# ---- relief ----


def disc(lon: float, lat: float, km: float) -> np.ndarray:
    """Terrain on a fine lattice of all places within a distance, by the geodesic."""
    geod, reach = Geod(ellps="WGS84"), km / 111.195
    x, y = np.meshgrid(np.linspace(-1.3, 1.3, 81) * reach, np.linspace(-1.05, 1.05, 71) * reach)
    x = lon + x / np.cos(np.radians(lat + y))
    away = geod.inv(np.full(x.shape, lon), np.full(x.shape, lat), x, lat + y)[2]
    return terrain(x, lat + y)[away <= 1000 * km]


@pytest.mark.parametrize(
    ("lon", "lat"), [(116.4, 39.9), (113.3, 37.9), (91.1, 29.65), (106.5, 33.0), (-68.15, -16.5), (25.0, 68.0)]
)
def test_relief_is_about_that_of_all_places_around(lon: float, lat: float) -> None:
    """48 places stand for the disc: means and deviations are within a fifth of the deviation."""
    found = relief([lon], [lat])[0]
    for j, km in enumerate(RELIEF_KM):
        around = disc(lon, lat, km)
        np.testing.assert_allclose(found[j], terrain(lon, lat) - around.mean(), rtol=0, atol=0.2 * around.std() + 5)
        np.testing.assert_allclose(found[2 + j], around.std(), rtol=0.2, atol=5)


def test_a_valley_lies_below_its_surroundings_and_a_plain_at_their_height() -> None:
    taiyuan, north_china_plain, sea = relief([112.55, 115.7, 123.0], [37.87, 36.5, 35.0])
    assert taiyuan[1] < -200
    assert taiyuan[3] > 200
    assert np.abs(north_china_plain).max() < 40
    assert (sea == 0).all()


def test_relief_is_float32_and_each_place_s_own() -> None:
    lon, lat = np.array([100.0, 113.0, 116.0]), np.array([30.0, 37.0, 39.0])
    found = relief(lon, lat)
    assert (found.shape, found.dtype) == ((3, 4), np.dtype("float32"))
    np.testing.assert_array_equal(found[1:2], relief(lon[1:2], lat[1:2]))
    assert relief([], []).shape == (0, 4)


@given(st.floats(-90, 90), st.floats(-180, 180))
def test_relief_goes_round_the_dateline_and_is_finite_at_the_poles(lat: float, lon: float) -> None:
    found = relief([lon], [lat])
    assert np.isfinite(found).all()
    assert (found[:, 2:] >= 0).all()
    np.testing.assert_allclose(found, relief([lon + 360], [lat]), atol=0.05)


@given(
    st.integers(-180, 150),
    st.integers(-85, 60),
    st.integers(1, 30),
    st.integers(1, 25),
    st.sampled_from([0.05, 0.1, 0.125, 0.25, 0.3, 0.5, 1.0]),
)
def test_centres_and_bounds_of_any_box(west: int, south: int, width: int, height: int, resolution: float) -> None:
    grid = Grid((west, south, west + width, south + height), resolution)
    for axis, edges, low, high in (
        (grid.x, grid.bounds[1], west, west + width),
        (grid.y, grid.bounds[0], south, south + height),
    ):
        assert axis[0] == low
        assert high - resolution < axis[-1] <= high + 1e-9
        np.testing.assert_array_equal(edges[1:, 0], edges[:-1, 1])
        np.testing.assert_allclose(edges.mean(axis=1), axis, atol=1e-9)


def test_lambert_grid_covers_the_box_on_multiples_of_the_resolution() -> None:
    grid = Grid(NORTH_CHINA, 10_000, LAMBERT)
    assert grid.spatial == ("y", "x")
    assert not (grid.x % 10_000).any()
    lon, lat = grid.lon_lat()
    back = Transformer.from_crs("EPSG:4326", LAMBERT, always_xy=True).transform(lon, lat)
    np.testing.assert_allclose(back, np.meshgrid(grid.x, grid.y), atol=1e-3)
    to_xy = Transformer.from_crs("EPSG:4326", LAMBERT, always_xy=True)
    x, y = to_xy.transform(*np.meshgrid(np.linspace(105, 125, 50), np.linspace(32, 45, 50)))
    assert grid.x[0] <= x.min() <= x.max() <= grid.x[-1]
    assert grid.y[0] <= y.min() <= y.max() <= grid.y[-1]


def test_lambert_cell_area_equals_the_geodesic_polygon() -> None:
    grid = Grid(NORTH_CHINA, 50_000, LAMBERT)
    coords = grid.coords()
    geod = Geod(ellps="WGS84")
    for at in ((0, 0), (10, 20), (-1, -1)):
        area, _ = geod.polygon_area_perimeter(coords["lon_bnds"].values[at], coords["lat_bnds"].values[at])
        assert grid.cell_area[at] == pytest.approx(area, rel=2e-3)


def test_lambert_land_agrees_with_the_degree_grid() -> None:
    share = [np.average(grid.land, weights=grid.cell_area) for grid in (Grid((110, 33, 120, 40), 0.1),)]
    lambert = Grid((110, 33, 120, 40), 10_000, LAMBERT)
    lon, lat = lambert.lon_lat()
    inside = (lon > 110) & (lon < 120) & (lat > 33) & (lat < 40)
    assert lambert.land[inside].mean() == pytest.approx(share[0], abs=0.01)


# ---- grids of models ----


def snyder_lambert(x: np.ndarray, y: np.ndarray, parallels: tuple, origin: tuple, radius: float) -> tuple:
    """Longitude and latitude on a sphere: Snyder 1987, USGS PP 1395, eq. 15-1 to 15-11, written out."""
    one, two, middle = np.radians([*parallels, origin[1]])

    def tangent(lat: float) -> float:
        return np.tan(np.pi / 4 + lat / 2)

    n = np.log(np.cos(one) / np.cos(two)) / np.log(tangent(two) / tangent(one))
    f = np.cos(one) * tangent(one) ** n / n
    rho_0 = radius * f / tangent(middle) ** n
    rho, theta = np.hypot(x, rho_0 - y), np.arctan2(x, rho_0 - y)
    lat = 2 * np.arctan((radius * f / rho) ** (1 / n)) - np.pi / 2
    return origin[0] + np.degrees(theta / n), np.degrees(lat)


def test_a_wrf_domain_lies_where_snyder_s_formulas_put_it() -> None:
    """27 km cells, 60 by 45 of them, centred on the projection's origin: the sphere of WRF and CMAQ."""
    wrf = "+proj=lcc +lat_1=30 +lat_2=60 +lat_0=38 +lon_0=115 +R=6370000"
    grid = Grid.from_corner((-60 * 13_500.0, -45 * 13_500.0), (60, 45), 27_000, wrf)
    assert grid.shape == (45, 60)
    assert (grid.x[0], grid.x[-1]) == (-796_500, 796_500)
    assert (grid.y[0], grid.y[-1]) == (-594_000, 594_000)
    expected = snyder_lambert(*np.meshgrid(grid.x, grid.y), (30, 60), (115, 38), 6_370_000)
    np.testing.assert_allclose(grid.lon_lat(), expected, atol=1e-9)
    attrs = grid.coords()["crs"].attrs
    assert attrs["grid_mapping_name"] == "lambert_conformal_conic"
    assert attrs["earth_radius"] == 6_370_000
    assert "inverse_flattening" not in attrs


@pytest.mark.parametrize(
    ("crs", "origin", "step"),
    [
        ("+proj=lcc +lat_1=30 +lat_2=60 +lat_0=38 +lon_0=115 +R=6370000", (-500_000, -300_000), 12_000),
        ("+proj=merc +lat_ts=30 +lon_0=115 +R=6370000", (-500_000, 3_000_000), 27_000),
        ("+proj=lcc +lat_1=30 +lat_2=60 +lat_0=38 +lon_0=115 +R=6370000 +units=km", (-500, -300), 12),
        ("EPSG:32661", (1_000_000, 1_000_000), 100_000),  # the north pole is in the middle
        ("EPSG:3031", (-1_000_000, -1_000_000), 100_000),  # the south pole
        ("+proj=lcc +lat_1=-20 +lat_2=-10 +lat_0=-15 +lon_0=179 +R=6370000", (-500_000, -300_000), 50_000),
        ("+proj=ob_tran +o_proj=longlat +lon_0=18 +o_lat_p=39.25 +o_lon_p=0 +R=6371229 +type=crs", (-5, -3), 0.44),
        ("EPSG:4326", (104.95, 31.95), 0.1),
    ],
)
def test_the_box_of_a_model_s_domain_holds_every_cell_and_no_more(crs: str, origin: tuple, step: float) -> None:
    grid = Grid.from_corner(origin, (20, 20), step, crs)
    west, south, east, north = grid.bbox
    lon, lat = grid.lon_lat()
    east_of = (lon - west) % 360
    assert -180 <= west <= east <= west + 360
    assert ((east_of <= east - west + 1e-6) | (east_of > 360 - 1e-6)).all()
    assert south - 1e-9 <= lat.min() <= lat.max() <= north + 1e-9
    if east - west < 360:
        assert np.ptp(np.where(east_of > 350, 0, east_of)) > 0.85 * (east - west)


def test_a_grid_of_a_corner_is_another_than_one_of_its_box() -> None:
    grid = Grid.from_corner((104.95, 31.95), (201, 131), 0.1, "EPSG:4326")
    by_box = Grid(NORTH_CHINA, 0.1)
    np.testing.assert_allclose(grid.x, by_box.x, atol=1e-9)
    np.testing.assert_allclose(grid.bbox, by_box.bbox, atol=1e-9)


@pytest.mark.parametrize(
    ("origin", "size", "step", "crs", "message"),
    [
        ((float("nan"), 0), (2, 2), 1.0, "EPSG:4326", "origin, size: expected a corner"),
        ((0, 0), (0, 2), 1.0, "EPSG:4326", "origin, size: expected a corner"),
        ((0, 0), (2, 2), 0.0, "EPSG:4326", "resolution: expected a number above 0"),
        ((0, 0), (2, 2), 1.0, "nonsense", "crs: expected a CRS that PROJ knows"),
        ((0, 0), (2, 2), 1.0, "+proj=ob_tran +o_proj=longlat +o_lat_p=50 +type=crs", "without 'lon_0'"),
        ((0, 0), (100_000, 100_000), 1.0, "EPSG:32650", "resolution: 1.0 makes 1e"),
        ((-3e7, -3e7), (60, 60), 1e6, "+proj=moll +R=6370000", "has no place on Earth"),
        ((-90, -90), (380, 100), 1.0, "EPSG:4326", "covers some longitudes twice"),
    ],
)
def test_what_makes_no_grid_of_a_model_is_named(
    origin: tuple, size: tuple, step: float, crs: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Grid.from_corner(origin, size, step, crs)


def test_cells_about_a_rotated_pole_have_the_sphere_s_area_and_land() -> None:
    crs = "+proj=ob_tran +o_proj=longlat +lon_0=18 +o_lat_p=39.25 +o_lon_p=0 +R=6371229 +type=crs"
    grid = Grid.from_corner((-10, -5), (20, 10), 1.0, crs)
    coords = grid.coords()
    assert coords["x"].attrs["standard_name"] == "grid_longitude"
    assert coords["crs"].attrs["grid_mapping_name"] == "rotated_latitude_longitude"
    geod = Geod(a=6371229, b=6371229)
    for at in ((0, 0), (5, 10), (-1, -1)):
        area, _ = geod.polygon_area_perimeter(coords["lon_bnds"].values[at], coords["lat_bnds"].values[at])
        assert grid.cell_area[at] == pytest.approx(area, rel=1e-3)
    lon, lat = grid.lon_lat()
    share = [is_land(lon, lat).mean(), np.average(grid.land_fraction, weights=grid.cell_area)]
    assert share[0] == pytest.approx(share[1], abs=0.06)


def test_areas_and_land_do_not_depend_on_the_unit_of_length() -> None:
    metres = Grid.from_corner((-300_000, -300_000), (12, 12), 50_000, f"{LAMBERT} +units=m")
    kilometres = Grid.from_corner((-300, -300), (12, 12), 50, f"{LAMBERT} +units=km")
    np.testing.assert_allclose(kilometres.cell_area, metres.cell_area, rtol=1e-9)
    np.testing.assert_array_equal(kilometres.land_fraction, metres.land_fraction)
    assert kilometres.coords()["x"].attrs["units"] == "km"
    feet = Grid((-74.3, 40.4, -73.6, 41.0), 10_000, "EPSG:2263").coords()
    assert feet["y"].attrs["units"] == "US_survey_foot"


@pytest.mark.parametrize("grid", [Grid(NORTH_CHINA, 1.0), Grid(NORTH_CHINA, 100_000, LAMBERT)])
def test_coords_follow_cf(grid: Grid) -> None:
    coords = grid.coords()
    assert coords["height"].attrs["positive"] == "up"
    assert CRS.from_cf(coords["crs"].attrs).equals(CRS(grid.crs))
    for name in ("lat", "lon"):
        assert coords[name].attrs["standard_name"] == {"lat": "latitude", "lon": "longitude"}[name]
        assert coords[name].attrs["bounds"] in coords
    assert not any("_FillValue" in coords[name].attrs for name in coords.variables)
    assert all(coords[name].attrs["axis"] for name in grid.spatial)


def test_points_are_the_cells_in_row_order() -> None:
    grid = Grid((100, 30, 102, 31), 1.0)
    lon, lat, elevation, around = grid.points()
    assert lon.tolist() == [100, 101, 102] * 2
    assert lat.tolist() == [30] * 3 + [31] * 3
    np.testing.assert_array_equal(elevation, terrain(lon, lat))
    np.testing.assert_array_equal(around, relief(lon, lat))


def test_extent_of_a_grid() -> None:
    found = extent(Grid(NORTH_CHINA, 1.0).coords())
    assert found["geospatial_lat_max"] == 45
    assert found["geospatial_bounds"] == "POLYGON ((32.0 105.0, 32.0 125.0, 45.0 125.0, 45.0 105.0, 32.0 105.0))"


def test_a_box_across_the_dateline() -> None:
    fiji = Grid((170, -20, -170, -10), 1.0)
    assert fiji == Grid((170, -20, 190, -10), 1.0)
    assert fiji.lon[-1] == 190
    assert fiji.land.any()


@pytest.mark.parametrize(
    ("bbox", "resolution", "crs", "message"),
    [
        ((105, 45, 125, 32), 0.1, "EPSG:4326", "bbox: expected south < north"),
        ((105, 32, 105, 45), 0.1, "EPSG:4326", "bbox: expected west < east"),
        ((-200, 32, 105, 45), 0.1, "EPSG:4326", "bbox: expected west < east"),
        ((0, 0, float("nan"), 1), 0.1, "EPSG:4326", "bbox: expected west < east"),
        ((105, 32, 125), 0.1, "EPSG:4326", "bbox: expected west south east north; found 3"),
        ((105, 32, 125, 45), 0.0, "EPSG:4326", "resolution: expected a number above 0"),
        ((105, 32, 125, 45), float("inf"), "EPSG:4326", "resolution: expected a number above 0"),
        ((105, 32, 125, 45), 0.0001, "EPSG:4326", "resolution: 0.0001 makes 2.6e"),
        ((105, 32, 125, 45), 0.1, "EPSG:32650", "resolution: 0.1 makes"),
        ((-180, -10, 180, 10), 1.0, "EPSG:4326", "covers some longitudes twice"),
        ((105, 32, 125, 45), 0.1, "EPSG:nope", "crs: expected a CRS that PROJ knows"),
        ((105, 32, 125, 45), 0.1, "EPSG:4978", "crs: expected degrees, or a projection in metre"),
        ((105, 32, 125, 45), 0.1, "EPSG:4979", "crs: expected degrees, or a projection in metre"),
        ((105, 32, 125, 45), 0.1, "EPSG:5703", "crs: expected degrees, or a projection in metre"),
        ((-180, -90, 179, 90), 10000, LAMBERT, "cannot project all of bbox"),
    ],
)
def test_what_makes_no_grid_is_named(bbox: tuple, resolution: float, crs: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Grid(bbox, resolution, crs)


@pytest.mark.parametrize("bbox", [(105, 32, 125, 45), (170, -20, 190, 5), (-180, 60, 179.9, 90)])
def test_surroundings_reach_the_distance_on_every_side(bbox: tuple) -> None:
    grid = Grid(bbox, 0.1)
    west, south, east, north = grid.surroundings(200.0)
    geod = Geod(ellps="WGS84")
    for lat in (grid.bbox[1], grid.bbox[3]):
        if abs(lat) < 89 and east - west < 360:
            assert geod.inv(grid.bbox[0], lat, west, lat)[2] > 198e3
            assert geod.inv(grid.bbox[2], lat, east, lat)[2] > 198e3
    assert south == -90 or geod.inv(0, south, 0, grid.bbox[1])[2] > 198e3
    assert north == 90 or geod.inv(0, north, 0, grid.bbox[3])[2] > 198e3
    assert east - west <= 360
