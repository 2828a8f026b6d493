"""What pyproject.toml cannot say: in a wheel the folder configs/ is a part of the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["densenet_flax*"]), "densenet_flax.configs"],
    package_dir={"densenet_flax.configs": "configs"},
)
