"""What a wheel holds. The rest of what describes the project is in pyproject.toml, which has no words for a folder that
lies elsewhere in the source tree: `cfgs/` is installed as `launch/cfgs`, where `launch.shipped` finds it.
"""

from setuptools import find_namespace_packages, setup

# A package that is not in the source tree is left out: the image of the shell router does without the experiments.
PACKAGES = ["graft", "experiments", "launch", "shell_router", "sglang_ext"]
found = find_namespace_packages(include=[pattern for name in PACKAGES for pattern in (name, f"{name}.*")])

setup(
    packages=[
        *(package for package in found if not package.startswith("launch.k8s")),
        *(f"launch.{package}" for package in find_namespace_packages(include=["cfgs", "cfgs.*"])),
    ],
    package_dir={"launch.cfgs": "cfgs"},
    package_data={
        "": ["*.json"],
        "shell_router.ui": ["*.html", "*.css", "*.js", "*.svg"],
        "experiments.questions": ["data/*"],
    },
)
