"""A few genuine rows of each layout, the seeds of the fuzz; sources and terms: docs/reference/fuzzing.md."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal

import pyarrow as pa

WIDE = b"""date,hour,type,1001A,1002A,1003A
20191202,0,AQI,19,19,17
20191202,0,PM2.5,2,2,7
20191202,0,PM2.5_24h,14,7,13
20191202,0,PM10,19,12,15
20191202,0,SO2,2,1,4
20191202,0,NO2,5,2,9
20191202,0,O3,56,59,53
20191202,0,O3_8h,53,66,58
20191202,0,CO,0.2,0.2,0.3
20191202,1,PM2.5,4,3,9
20191202,1,PM10,11,11,10
20191202,1,CO,0.2,,0.3
"""

API = """timepoint,stationcode,longitude,latitude,area,positionname,primarypollutant,aqi,pm10,pm10_24h,pm2_5,\
pm2_5_24h,o3,o3_24h,o3_8h,o3_8h_24h,no2,no2_24h,so2,so2_24h,co,co_24h
2026-02-27T0500,2568A,102.2503,31.8896,阿坝藏族羌族自治州,马师校,,14,11,17,3,8,42,,,,3,5,5,5,0.3,0.3
2026-02-27T0500,3994A,102.2174,31.9016,阿坝藏族羌族自治州,马尔康中学西区,,12,6,25,3,6,37,,,,4,5,6,6,0.3,0.4
2026-02-27T0600,2568A,102.2503,31.8896,阿坝藏族羌族自治州,马师校,,14,12,17,4,8,/,,,,3,5,5,5,0.3,0.3
""".encode()

TABLE = b"""time,station,lon,lat,elevation,pm2p5,pm10,o3,co
2019-12-10T03:00,cnemc:1001A,116.3621,39.8784,44,171,196,,2.9
2019-12-10T03:00:00Z,cnemc:1002A,116.2202,40.2915,112,118,NA,1,1.6
2019-12-10T12:00:00+08:00,cnemc:1003A,116.417,39.929,46,192,201,3,2.5
2019-12-10T04:00,cnemc:1001A,116.3621,39.8784,44,168.5,190,2,2.7
"""

WIDE_SITES = "code,lon,lat\n1001A,116.3621,39.8784\n1002A,116.2202,40.2915\n1003A,116.417,39.929\n"

AIRNOW = b"""07/24/25|09:00|000020401|SOUTHAMPTON|-4|NO|PPB|0|Canada-Prince Edward Island1
07/24/25|09:00|000020401|SOUTHAMPTON|-4|NO2|PPB|0.7|Canada-Prince Edward Island1
07/24/25|09:00|000020401|SOUTHAMPTON|-4|PM2.5|UG/M3|5.3|Canada-Prince Edward Island1
07/24/25|09:00|000030113|JOHNSTON BUILDING|-4|PM2.5|UG/M3|4.2|Canada-Nova Scotia1
07/24/25|10:00|000030113|JOHNSTON BUILDING|-4|PM2.5|UG/M3|5.2|Canada-Nova Scotia1
07/24/25|09:00|010030010|FAIRHOPE|-6|OZONE|PPB|43|Alabama Department of Environmental Management
07/24/25|09:00|010030010|FAIRHOPE|-6|CO|PPM|0.3|Alabama Department of Environmental Management
07/24/25|09:00|010030010|FAIRHOPE|-6|SO2|PPB|-999|Alabama Department of Environmental Management
"""

AIRNOW_SITES = """000020401|PM2.5|0401|SOUTHAMPTON|Active|PE1|Canada-Prince Edward Island1|CA|46.386400|-62.582800|\
15.300|-4.00|CA|||||00|CC|002|PRINCE EDWARD ISLAND||
000030113|PM2.5|0113|JOHNSTON BUILDING|Active|NS1|Canada-Nova Scotia1|CA|44.647175|-63.573689|29.000|-4.00|CA|\
||||00|CC|003|NOVA SCOTIA||
010030010|PM2.5|0010|FAIRHOPE|Active|AL1|Alabama Department of Environmental Management|R4|30.488900|-87.870600|\
0.000|-6.00|US|||||01|AL|003|Baldwin||
"""

AQOBS = b""""AQSID","SiteName","Status","EPARegion","Latitude","Longitude","Elevation","GMTOffset","CountryCode",\
"StateName","ValidDate","ValidTime","DataSource","ReportingArea_PipeDelimited","OZONE_AQI","PM10_AQI","PM25_AQI","NO2_A\
QI","OZONE_Measured","PM10_Measured","PM25_Measured","NO2_Measured","PM25","PM25_Unit","OZONE","OZONE_Unit","N\
O2","NO2_Unit","CO","CO_Unit","SO2","SO2_Unit","PM10","PM10_Unit"
"010030010","FAIRHOPE","Active","R4","30.4889","-87.8706","0.0","-6","US","AL","09/27/2026","15:00","Alabama D\
epartment of Environmental Management","Mobile","38","","52","","1","0","1","0","10.6","UG/M3","43.0","PPB",""\
,"","","","","","",""
"010270001","ASHLAND","Active","R4","33.2811","-85.8022","0.0","-6","US","AL","09/27/2026","15:00","Alabama De\
partment of Environmental Management","","","","14","","0","0","1","0","5.3","UG/M3","","","","","","","","","\
",""
"010331002","MSHOALS","Inactive","R4","34.7606","-87.6506","0.0","-6","US","AL","09/27/2026","15:00","Alabama \
Department of Environmental Management","","","","","","1","0","1","0","","","","","","","","","","","",""
"010730023","NO. B'HAM","Active","R4","30.4889","-87.8706","0.0","-6","US","AL","09/27/2026","14:00","Alabama \
Department of Environmental Management","Mobile","38","","52","","1","0","1","0","10.6","UG/M3","43.0","PPB","\
21.3","PPB","0.4","PPM","1.2","PPB","17","UG/M3"
"""

OPENAQ = """location_id,sensors_id,location,datetime,lat,lon,parameter,units,value
7727,22558,Tung Chung-7727,2022-11-01T01:00:00+08:00,22.2888888888889,113.943611111111,pm10,µg/m³,100.3
7727,22558,Tung Chung-7727,2022-11-01T02:00:00+08:00,22.2888888888889,113.943611111111,pm10,µg/m³,56.9
7727,22558,Tung Chung-7727,2022-11-01T03:00:00+08:00,22.2888888888889,113.943611111111,pm10,µg/m³,45.1
7727,22559,Tung Chung-7727,2022-11-01T01:00:00+08:00,22.2888888888889,113.943611111111,no2,ppb,12.5
7727,22559,Tung Chung-7727,2022-11-01T02:00:00+08:00,22.2888888888889,113.943611111111,no2,ppb,-999.0
7727,22560,Tung Chung-7727,2022-11-01T02:00:00+08:00,22.2888888888889,113.943611111111,co,ppm,0.4
7727,22561,Tung Chung-7727,2022-11-01T02:00:00+08:00,22.2888888888889,113.943611111111,no,ppb,3
""".encode()

OPENAQ_FINE = ("location_id,sensors_id,location,datetime,lat,lon,parameter,units,value\n" + "".join(
    f"8118,23707,New Delhi-8118,2022-11-01T{h:02}:{m:02}:00+05:30,28.63576,77.22445,pm25,µg/m³,{100 + 7 * h + m / 2}\n"
    for h in (1, 2) for m in (0, 15, 30, 45)
)).encode()  # fmt: skip

PRSA = b""""No","year","month","day","hour","PM2.5","PM10","SO2","NO2","CO","O3","TEMP","PRES","DEWP","RAIN","wd",\
"WSPM","station"
1,2013,3,1,0,4,4,3,NA,200,82,-2.3,1020.8,-19.7,0,"E",0.5,"Dingling"
2,2013,3,1,1,7,7,3,NA,200,80,-2.5,1021.3,-19,0,"ENE",0.7,"Dingling"
3,2013,3,1,2,5,5, ,2,200,79,-3,1021.3,-19.9,0,"ENE",0.2,"Dingling"
4,2013,3,1,3,6,6.5,3,NA,1300,79,-3.6,1021.8,-19.1,0,"NNE",1,"Dingling"
"""

PRSA_SITES = "station,code,lon,lat\nDingling,1002A,116.2202,40.2915\nDongsi,1003A,116.4174,39.9289\n"

AQS = b""""State Code","County Code","Site Num","Parameter Code","POC","Latitude","Longitude","Datum","Parameter Name",\
"Date Local","Time Local","Date GMT","Time GMT","Sample Measurement","Units of Measure","MDL","Uncertainty",\
"Qualifier","Method Type","Method Code","Method Name","State Name","County Name","Date of Last Change"
"01","003","0010","44201",1,30.497478,-87.880258,"NAD83","Ozone","2024-03-01","01:00","2024-03-01","07:00",0.062,\
"Parts per million",0.005,"","","FEM","087","INSTRUMENTAL - ULTRA VIOLET ABSORPTION","Alabama","Baldwin","2024-07-19"
"06","037","1103","42602",1,34.06659,-118.22688,"WGS84","Nitrogen dioxide (NO2)","2024-01-01","00:00","2024-01-01",\
"08:00",21.3,"Parts per billion",0.1,"","","FEM","074","Instrumental - Chemiluminescence","California","Los Angeles",\
"2024-04-01"
"01","073","0023","88101",3,33.553056,-86.815,"WGS84","PM2.5 - Local Conditions","2024-07-04","00:00","2024-07-04",\
"06:00",12.3,"Micrograms/cubic meter (LC)",5,"","","FEM","209","Met One BAM-1022","Alabama","Jefferson","2024-09-19"
"01","073","0023","88502",1,33.553056,-86.815,"NAD27","Acceptable PM2.5","2024-07-04","00:00","2024-07-04",\
"06:00",12.9,"Micrograms/cubic meter (LC)",5,"","","","731","Met One BAM-1020","Alabama","Jefferson","2024-09-19"
"01","073","0023","42101",1,33.553056,-86.815,"WGS84","Carbon monoxide","2024-07-04","01:00","2024-07-04",\
"07:00",0.3,"Parts per million",0.5,"","","FRM","054","Nondispersive infrared","Alabama","Jefferson","2024-09-19"
"""

PURPLE = ("time_stamp,sensor_index,humidity,pm2.5_cf_1_a,pm2.5_cf_1_b\n" + "".join(
    f"{1672531200 + 600 * i},{274866 if i < 12 else 7},{53 - i % 6},{8.8 + i / 10:.1f},{8.9 + i / 10:.1f}\n"
    for i in range(18)
)).encode()  # fmt: skip

PURPLE_HOURLY = b"""time_stamp,humidity,pm2.5_cf_1_a,pm2.5_cf_1_b,latitude,longitude
2023-01-01T00:00:00Z,53,8.8,8.8,40.5,-120.25
2023-01-01T01:00:00Z,51.5,588.1,592.4,40.5,-120.25
2023-01-01T02:00:00Z,50,700,701.5,40.5,-120.25
2023-01-01T03:00:00Z,49,10.1,nan,40.5,-120.25
"""

PURPLE_SITES = "sensor_index,latitude,longitude,altitude\n274866,40.5,-120.25,1000\n7,41.5,-121.25,\n"

#: As the EEA's download service writes it.
EEA_SCHEMA = pa.schema(
    {
        "Samplingpoint": pa.string(), "Pollutant": pa.int32(), "Start": pa.timestamp("ns"), "End": pa.timestamp("ns"),
        "Value": pa.decimal128(38, 18), "Unit": pa.string(), "AggType": pa.string(), "Validity": pa.int32(),
        "Verification": pa.int32(), "ResultTime": pa.timestamp("ns"), "DataCapture": pa.decimal128(38, 18),
        "FkObservationLog": pa.string(),
    }
)  # fmt: skip

_MIDNIGHT, _HOUR = datetime(2019, 7, 1), timedelta(hours=1)

EEA = pa.Table.from_pylist(
    [
        {
            "Samplingpoint": f"MT/SPO-MT00005_{code:05}_{which}", "Pollutant": code, "Start": _MIDNIGHT + hour * _HOUR,
            "End": _MIDNIGHT + (hour + 1) * _HOUR, "Value": Decimal(value), "Unit": unit, "AggType": "hour",
            "Validity": validity, "Verification": 1, "ResultTime": datetime(2020, 9, 30), "FkObservationLog": "a1",
        }
        for code, which, hour, value, unit, validity in (
            (6001, 100, 0, "7.5", "ug.m-3", 1), (6001, 100, 1, "8.25", "ug.m-3", 2),
            (6001, 100, 2, "-999", "ug.m-3", -1), (6001, 101, 0, "9", "ug.m-3", 1), (10, 100, 0, "0.35", "mg.m-3", 1),
            (7, 100, 0, "88", "ug.m-3", 4),
        )
    ],
    EEA_SCHEMA,
)  # fmt: skip

EEA_SITES = (
    "Country,Air Quality Station EoI Code,Sampling Point Id,Air Pollutant,Longitude,Latitude,Altitude,"
    "Measurement Type\n"
    "Malta,MT00005,SPO-MT00005_06001_100,PM2.5,14.4899,35.8958,2.0,automatic\n"
    "Malta,MT00005,SPO-MT00005_06001_101,PM2.5,14.4899,35.8958,2.0,active\n"
    "Malta,MT00005,SPO-MT00005_00010_100,CO,14.4899,35.8958,,automatic\n"
    "Malta,MT00005,SPO-MT00005_00007_100,O3,14.4899,35.8958,,automatic\n"
)

TABLE_ROWS = pa.table(
    {
        "time": pa.array([datetime(2019, 12, 10, 3), datetime(2019, 12, 10, 3), datetime(2019, 12, 10, 4)]),
        "station": ["cnemc:1001A", "cnemc:1002A", "cnemc:1001A"],
        "lon": [116.3621, 116.2202, 116.3621],
        "lat": [39.8784, 40.2915, 39.8784],
        "elevation": [44.0, 112.0, 44.0],
        "pm2p5": [171.0, 118.0, 168.5],
        "pm10": pa.array([196, None, 190], pa.float32()),
        "co": pa.array([2.9, 1.6, 2.7], pa.float32()),
    }
)
