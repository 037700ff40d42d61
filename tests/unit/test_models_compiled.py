"""What was compiled is used again as long as no loop has changed, in whatever file it is."""

from pathlib import Path

from models.compiled import cache_folder


def test_a_changed_loop_has_another_folder_and_other_changes_have_not(tmp_path: Path) -> None:
    (tmp_path / "loops.py").write_text("@kernel\ndef f(): ...\n")
    (tmp_path / "callers.py").write_text("from loops import f\n@kernel\ndef g(): f()\n")
    before = cache_folder(tmp_path)
    (tmp_path / "settings.py").write_text("dims = 64\n")
    assert cache_folder(tmp_path) == before
    (tmp_path / "loops.py").write_text("@kernel\ndef f(): return 1\n")
    assert cache_folder(tmp_path) != before
