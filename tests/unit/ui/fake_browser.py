"""The pages without a browser: open one, press its buttons, read what it says."""

import time
from pathlib import Path

from streamlit.testing.v1 import AppTest

APP = Path(__file__).parents[3] / "ui" / "app.py"


def open_page(page: str | None = None, **query: str) -> AppTest:
    """The app on one of its pages."""
    app = AppTest.from_file(str(APP), default_timeout=60).run()
    if page is not None:
        for name, value in query.items():
            app.query_params[name] = value
        app.switch_page(f"views/{page}.py").run()
    assert not app.exception
    return app


def said(app: AppTest) -> str:
    """Everything that a page says in words."""
    kinds = ("title", "subheader", "markdown", "caption", "info", "warning", "success", "error", "metric", "code")
    return "\n".join(
        str(part.label if kind == "metric" else part.value) for kind in kinds for part in getattr(app, kind)
    )


def in_tables(app: AppTest, text: str) -> bool:
    """Whether one of the tables holds a text."""
    return any(text in str(table.value.to_dict()) for table in app.dataframe)


def press(app: AppTest, key: str) -> AppTest:
    """Press the button of this key."""
    app.button(key=key).click().run()
    assert not app.exception
    return app


def decide(app: AppTest, key: str, *, why: str) -> None:
    """Give the reason in a dialog and confirm. A browser keeps the dialog open; here each run must open it anew."""
    app.text_input(key=f"why-{key}").input(why)
    press(app, key)
    app.button(key=f"do-{key}").click()
    press(app, key)


def choose_server_file(app: AppTest, key: str, path: Path | str) -> AppTest:
    """Name a file of interactions that lies on the server."""
    next(control for control in app.segmented_control if control.key == f"{key}-where").set_value(
        "On this server"
    ).run()
    return app.text_input(key=f"{key}-path-Interactions").input(str(path)).run()


def follow(app: AppTest, until: str, limit_s: float = 30) -> AppTest:
    """Draw the page again until it says something."""
    deadline = time.monotonic() + limit_s
    while until not in said(app):
        assert time.monotonic() < deadline, said(app)
        time.sleep(0.2)
        app.run()
    return app
