"""timm imports beside this torch, in a fresh process and once for all."""

import subprocess
import sys

from ppma.torchvision_shim import ensure_torchvision, timm


def test_timm_makes_models_and_transforms_here():
    model = timm.create_model("test_vit", num_classes=3)
    assert model.head.out_features == 3
    assert len(timm.data.create_transform(**timm.data.resolve_model_data_config(model)).transforms) > 2


def test_asking_again_changes_nothing():
    assert ensure_torchvision() == ensure_torchvision()


def test_any_other_failure_is_raised_as_it_is(tmp_path):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('libcudart.so is missing')\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import ppma.torchvision_shim"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1 and "libcudart.so is missing" in result.stderr
