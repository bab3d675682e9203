"""Public data sets in their original formats, made up small, and what every loader must hold to."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from domains.ingestion.ingest import ingest
from domains.public import LOADERS, PreparedDomain
from domains.spec import DomainSpec

SHOWN = [(1, 1, 1), (1, 2, 1), (2, 1, 1), (2, 2, 4), (3, 2, 1), (3, 1, 4)]
REVIEWS = [
    {"reviewerID": "A2SUAM1J3GNN3B", "asin": "0000013714", "overall": 5.0, "unixReviewTime": 1252800000},
    {"reviewerID": "A14VAT5EAX3D9S", "asin": "B00002SWHH", "overall": 2.0, "unixReviewTime": 1363392000},
]


def load(name: str, path: Path, out_dir: Path, **options: object) -> dict[str, PreparedDomain]:
    prepared = {domain.spec.name: domain for domain in LOADERS[name](path, out_dir, **options)}
    for domain in prepared.values():
        assert_spec_fits_files(domain)
    assert not (out_dir / ".staging").exists()
    return prepared


def assert_spec_fits_files(domain: PreparedDomain) -> None:
    """Every column that the spec names is in the files, ids are text, and the rows are as many as said."""
    spec, schema = domain.spec, pq.read_schema(domain.interactions)
    assert DomainSpec.from_yaml(domain.interactions.parent / "spec.yaml") == spec
    columns = spec.interactions
    named = {columns.user, columns.item, columns.time, columns.label, columns.action, *columns.context} - {None}
    assert named <= set(schema.names)
    assert pa.types.is_string(schema.field(columns.user).type)
    assert pa.types.is_string(schema.field(columns.item).type)
    assert pq.read_metadata(domain.interactions).num_rows == domain.rows > 0
    for declared, file in ((spec.items, domain.items), (spec.users, domain.users)):
        assert (declared is None) == (file is None)
        if declared is not None and file is not None:
            assert {declared.id, *declared.features} <= set(pq.read_schema(file).names)


def rows_of(domain: PreparedDomain, table: str = "interactions") -> list[dict]:
    return pq.read_table(getattr(domain, table)).to_pylist()


def distinct(domain: PreparedDomain, column: str) -> set[str]:
    return set(pq.read_table(domain.interactions, columns=[column])[column].to_pylist())


def write_lines(path: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode(encoding))
    return path


def assert_ingests_whole(domain: PreparedDomain, data_dir: Path, number: int) -> None:
    report = ingest(
        domain.spec,
        number=number,
        interactions=[domain.interactions],
        items=domain.items,
        users=domain.users,
        data_dir=data_dir,
    )
    assert (report.rows_read, report.rows_added, report.rows_quarantined) == (domain.rows, domain.rows, 0)


def movielens(folder: Path) -> Path:
    write_lines(folder / "users.dat", "1::F::1::10::48067", "2::M::56::16::70072")
    write_lines(
        folder / "movies.dat",
        "1::Toy Story (1995)::Animation|Children's|Comedy",
        "2::Misérables, Les (1995)::Drama|Musical",
        "3::Heat (1995)::Drama",
        encoding="latin-1",
    )
    write_lines(
        folder / "ratings.dat", "1::1::5::978300760", "1::2::3::978302109", "2::3::4::978298413", "2::2::4::978298414"
    )
    return folder


def kuairand(folder: Path) -> Path:
    header = (
        "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
        "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
    )
    row = "{},{},20220408,1700,16494{:07d}0,{},{},0,0,0,0,0,100,200,0,0,0,0,{}"
    rows = [row.format(u, v, 10 * u + v, int(v == 2), int(u == 1 and v == 2), t) for u, v, t in SHOWN]
    write_lines(folder / "data" / "log_standard_4_08_to_4_21_1k.csv", header, *rows[:4])
    write_lines(folder / "data" / "log_standard_4_22_to_5_08_1k.csv", header, *rows[4:])
    write_lines(
        folder / "data" / "user_features_1k.csv",
        "user_id,user_active_degree,is_lowactive_period,follow_user_num_range,fans_user_num_range,register_days_range",
        *(f'{user},full_active,0,"(10,50]","[1,10)",61-90' for user in (1, 2, 3)),
    )
    write_lines(
        folder / "data" / "video_features_basic_1k.csv",
        "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,music_id,music_type,tag",
        *(f'{video},7,NORMAL,2022-04-01,LongImport,1,{1000.0 * video},3,9.0,"12,65"' for video in (1, 2, 9)),
    )
    return folder


def taobao_ads(folder: Path) -> Path:
    write_lines(
        folder / "raw_sample.csv",
        "user,time_stamp,adgroup_id,pid,nonclk,clk",
        "1,1494137644,100,430548_1007,1,0",
        "1,1494137645,101,430548_1007,0,1",
        "2,1494137646,102,430539_1007,1,0",
        "2,1494137647,999,430539_1007,1,0",
    )
    write_lines(
        folder / "ad_feature.csv",
        "adgroup_id,cate_id,campaign_id,customer,brand,price",
        "100,1999,9,9,55,10.0",
        "101,1999,9,9,NULL,20.0",
        "102,2000,9,9,55,30.0",
    )
    write_lines(
        folder / "user_profile.csv",
        "userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,shopping_level,occupation,"
        "new_user_class_level ",
        "1,0,5,2,5,,3,0,3",
        "2,0,5,2,5,2,3,0,",
    )
    write_lines(
        folder / "behavior_log.csv",
        "user,time_stamp,btag,cate,brand",
        "1,1493741625,pv,6250,91286",
        "1,1493741626,cart,2000,55",
        "2,1493741627,pv,1999,55",
    )
    return folder


def ali_ccp(folder: Path) -> Path:
    """Two users in train and one of them again in test; scenes 10 and 11."""

    def features(**fields: str) -> str:
        return "\x01".join(f"{field.removeprefix('f')}\x02{feature}\x031.0" for field, feature in fields.items())

    def impression(number: int, click: int, buy: int, common: str, **fields: str) -> str:
        return f"{number},{click},{buy},{common},{len(fields)},{features(**fields)}"

    write_lines(
        folder / "common_features_train.csv",
        f"c1,4,{features(f101='7', f121='70', f124='2', f109_14='999')}",
        f"c2,2,{features(f101='8', f125='5')}",
    )
    write_lines(folder / "common_features_test.csv", f"c3,2,{features(f101='7', f129='4')}")
    write_lines(
        folder / "sample_skeleton_train.csv",
        impression(1, 1, 0, "c1", f205="50", f206="6", f207="20", f216="9", f301="10"),
        impression(2, 0, 0, "c1", f205="51", f206="6", f301="11", f508="205"),
        impression(3, 0, 1, "c2", f205="50", f206="6", f301="10"),
        impression(4, 1, 1, "c2", f205="52", f206="7", f301="10"),
        impression(5, 0, 0, "c2", f206="7", f301="10"),
    )
    write_lines(
        folder / "sample_skeleton_test.csv",
        impression(1, 0, 0, "c3", f205="50", f207="20", f301="10"),
        impression(2, 0, 0, "gone", f205="50", f301="11"),
    )
    return folder


def amazon_json(folder: Path) -> Path:
    text = "".join(json.dumps(review | {"reviewText": "fine, “really”"}) + "\n" for review in REVIEWS)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "reviews_Books_5.json.gz").write_bytes(gzip.compress(text.encode()))
    write_lines(folder / "CDs_and_Vinyl_5.json", json.dumps(REVIEWS[0]))
    write_lines(
        folder / "meta_Books.json",
        "{'asin': '0000013714', 'categories': [['Books', 'Music &amp; Hymns']], 'price': 3.5, 'brand': \"O'Neill\"}",
        "{'asin': 'B00000000X', 'categories': [['Books']]}",
    )
    write_lines(
        folder / "meta_CDs_and_Vinyl.json",
        json.dumps({"asin": "0000013714", "category": ["CDs", "Pop"], "price": "$1,299.00", "brand": ""}),
    )
    return folder


def douban(folder: Path) -> Path:
    for part in ("book", "music"):
        write_lines(folder / f"{part}_ratings.dat", *(f"{user}\t{user + 1}\t4" for user in range(50)))
    return folder
