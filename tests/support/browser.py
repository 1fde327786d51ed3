"""A headless Chromium that knows its way about the page of ``mgpt4 serve``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from tests.support.runs import patience

WAIT_S = 30
T = TypeVar("T")


def is_installed() -> bool:
    """Whether there is a Chromium with its driver."""
    return all(shutil.which(name) for name in ("chromium", "chromedriver"))


class Browser:
    """One window, on one page."""

    def __init__(self, profile: Path) -> None:
        options = Options()
        options.binary_location = str(shutil.which("chromium"))
        for argument in (
            *("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"),
            *("--window-size=1180,1010", f"--user-data-dir={profile}"),
        ):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        self.driver = webdriver.Chrome(
            options=options, service=Service(str(shutil.which("chromedriver")))
        )

    def open(self, url: str) -> None:
        """Open the page and wait until it can be used."""
        self.driver.get(url)
        self.wait(lambda: self.find("#question textarea").is_enabled())

    def find(self, selector: str) -> WebElement:
        """The first element of a CSS selector."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """Texts of all elements of a CSS selector."""
        return [e.text.strip() for e in self.driver.find_elements(By.CSS_SELECTOR, selector)]

    def wait(self, condition: Callable[[], T]) -> T:
        """Ask until true; elements that come, go, or are drawn anew meanwhile are no fault."""
        limit_s = WAIT_S * patience()
        wait = WebDriverWait(
            self.driver, limit_s, 0.1, ignored_exceptions=(StaleElementReferenceException,)
        )
        try:
            return wait.until(lambda _: condition())
        except TimeoutException:
            said = f"asked {self.questions}, answered {self.answers}, noted {self.notes!r}"
            raise AssertionError(f"not within {limit_s:.0f} s; {said}") from None

    def upload(self, image: Path) -> None:
        """Add an image to the next question, and wait until it has arrived."""
        self.find("#question input[type=file]").send_keys(str(image))
        self.wait(lambda: self.texts("#question .thumbnail-item"))

    def ask(self, question: str) -> None:
        """Type a question and send it."""
        box = self.find("#question textarea")
        box.send_keys(question + Keys.ENTER)

    def choose(self, speaker: str) -> None:
        """Choose a checkpoint."""
        self.find("#speaker input").click()
        self.wait(lambda: self.texts("#speaker [role=option]"))
        for option in self.driver.find_elements(By.CSS_SELECTOR, "#speaker [role=option]"):
            if speaker in option.text:
                option.click()
                return
        raise AssertionError(f"{speaker} cannot be chosen")

    @property
    def questions(self) -> list[str]:
        """What was asked, as the page shows it; an image is a message of its own."""
        return [text for text in self.texts("[data-testid=user]") if text]

    @property
    def answers(self) -> list[str]:
        """What was answered, as the page shows it."""
        return self.texts("[data-testid=bot]")

    @property
    def images(self) -> int:
        """How many images the conversation shows, and that each of them could be drawn."""
        script = "return [...document.querySelectorAll('.talk img.shown')].map(i => i.naturalWidth)"
        widths = self.driver.execute_script(script)
        assert all(widths), widths
        return len(widths)

    @property
    def notes(self) -> str:
        """Faults that the page tells."""
        return "\n".join(self.texts(".toast-body"))

    @property
    def asks_before_leaving(self) -> bool:
        """Whether the page would have the browser ask before it is loaded again or closed."""
        leaving = "const e = new Event('beforeunload', {cancelable: true});"
        return self.driver.execute_script(f"{leaving} dispatchEvent(e); return e.defaultPrevented")

    @property
    def kept(self) -> list[str]:
        """Names of what the page has stored in the browser."""
        script = "return [...Object.keys(localStorage), ...Object.keys(sessionStorage)]"
        return self.driver.execute_script(script)

    def requests_outside(self, inside: str) -> list[str]:
        """Addresses beyond ``inside`` that the page asked for, or tried to."""
        found = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(message["params"]["request"]["url"])
        return [url for url in found if url.startswith("http") and not url.startswith(inside)]

    def faults(self) -> list[str]:
        """What the page's scripts complained of."""
        return [e["message"] for e in self.driver.get_log("browser") if e["level"] == "SEVERE"]

    def close(self) -> None:
        """Close the window."""
        self.driver.quit()
