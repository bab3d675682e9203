"""Specs and files made up for the tests of ingest, and a desk that hands them in."""

from domains.events.domain_data import DomainData
from domains.ingestion.ingest import ingest
from domains.spec import DomainSpec

NOON_US = 1_704_110_400_000_000  # 2024-01-01T12:00:00Z
NOW_US = NOON_US + 30 * 86_400_000_000
HEADER = "user_id,item_id,ts,click,event_type,hour\n"


def a_spec(**changes):
    interactions = {
        "user": "user_id", "item": "item_id", "time": "ts", "label": "click", "action": "event_type",
        "context": {"hour": "number"},
    }  # fmt: skip
    interactions |= changes.pop("interactions", {})
    return DomainSpec.from_mapping(
        {
            "name": "live-rooms", "role": "target", "task": "ctr", "owner": "team-live",
            "interactions": {key: value for key, value in interactions.items() if value is not None},
            "items": {"id": "item_id", "features": {"category": "category", "price": "number"}},
            "users": {"id": "user_id", "features": {"age_band": "category"}},
            **changes,
        }
    )  # fmt: skip


SPEC = a_spec()
NO_MORE = {"action": None, "context": None}
BARE = a_spec(interactions=NO_MORE)


class Desk:
    """A data folder, and files written beside it."""

    def __init__(self, folder):
        self.folder, self.data_dir = folder, folder / "data"

    def write(self, content, name="events.csv"):
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def ingest(self, *contents, spec=SPEC, name="events.csv", number=1, **more):
        paths = [
            content if hasattr(content, "suffix") else self.write(content, f"{at or ''}{name}")
            for at, content in enumerate(contents)
        ]
        return ingest(spec, number=number, interactions=paths, data_dir=self.data_dir, now_us=NOW_US, **more)

    def data(self, name="live-rooms"):
        return DomainData(self.data_dir, name)

    def quarantined(self):
        return [(row["line"], row["reason"]) for row in self.data().quarantine()]


def bare(*times, label=1):
    """Events of one user, one for each time text, each with its own item."""
    return "user_id,item_id,ts,click\n" + "".join(f"u,i{at},{time},{label}\n" for at, time in enumerate(times))
