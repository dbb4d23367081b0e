"""scripts/demo as somebody runs it who has just cloned: twice, and the second time there is nothing to do."""

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def demo(folder: Path, *words: str) -> str:
    """What the demo shows; it must succeed and have nothing to complain of."""
    answer = subprocess.run(
        [ROOT / "scripts" / "demo", *words],
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("DCMTOOLS_")},
            "DEMO": str(folder),
        },
        capture_output=True,
        check=False,
        text=True,
        timeout=240,
    )
    assert (answer.returncode, answer.stderr) == (0, "")
    return answer.stdout


def test_second_run_transfers_and_converts_nothing_and_says_so(tmp_path: Path) -> None:
    first, second = demo(tmp_path), demo(tmp_path)

    assert "The PACS had 3 studies" in first
    assert "678 instances came over the network" in first
    assert "9 volumes converted to NIfTI" in first
    assert '"audit": {' in first
    assert "Nothing was transferred, nothing was converted" in second
    assert "Every instance was `present` (678), every volume `unchanged` (9)" in second
    for shown in (first, second):
        pictures = re.findall(r"(?m)^(/\S.*\.png)$", shown)
        assert len(pictures) == 21  # of 9 volumes, and of 12 series with the three clips
        assert all(Path(picture).stat().st_size for picture in pictures)
        assert "Exit code 0: all done and verified." in shown


def test_words_that_mean_nothing_are_a_usage_error(tmp_path: Path) -> None:
    answer = subprocess.run([ROOT / "scripts" / "demo", "--nodes"], capture_output=True, check=False, text=True)

    assert (answer.returncode, answer.stdout) == (2, "")
    assert "'--nodes' is not an option" in answer.stderr
