"""Screenshots of a page at 1440 and 390 pixels, light and dark: ``python -m bench.explorer_screenshots
results/demo/explore.html --out shots [--hash "text=…&view=numbers"]``.

For looking at what a change does to the explorer (or to any page of ours), and for the picture in its documentation.
"""

import argparse
from pathlib import Path

from bench.browser import chromium

SIZES = {1440: 1000, 390: 844}  # width: height


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path, help="HTML file")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--hash", default="", help="the address after #")
    parser.add_argument("--whole", action="store_true", help="the whole page, not only its first screen")
    parser.add_argument("--schemes", nargs="+", default=["light", "dark"], choices=["light", "dark"])
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        for width, height in SIZES.items():
            for scheme in arguments.schemes:
                view = browser.new_page(
                    viewport={"width": width, "height": height}, color_scheme=scheme, device_scale_factor=1
                )
                view.goto(f"{arguments.page.resolve().as_uri()}#{arguments.hash}")
                view.wait_for_selector("body:not([aria-busy])", timeout=120_000)
                view.wait_for_timeout(300)
                file = arguments.out / f"{arguments.page.stem}_{width}_{scheme}.png"
                view.screenshot(path=file, full_page=arguments.whole)
                print(file)
                view.close()


if __name__ == "__main__":
    main()
