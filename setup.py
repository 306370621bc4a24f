"""Install ftlearn: everything that can change is read from settings.ini."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
LICENCES = {"apache2": "Apache-2.0"}

settings = ConfigParser()
settings.read(HERE / "settings.ini", encoding="utf-8")
cfg = settings["DEFAULT"]
readme = HERE / "README.md"

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license=LICENCES[cfg["license"]],
    keywords=cfg["keywords"],
    packages=find_packages(include=["ftlearn", "ftlearn.*"]),
    package_data={"ftlearn": ["resources/*"]},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require={"dev": cfg["dev_requirements"].split(), "models": cfg["models_requirements"].split()},
    entry_points={
        "console_scripts": cfg.get("console_scripts", "").split(),
        "nbdev": [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"],
    },
    zip_safe=False,
)
