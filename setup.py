"""The recipes travel inside the wheel: one copy in ``recipes/``, laid beside ``sidera.recipes`` when a wheel is built.

Everything else is in pyproject.toml. An editable install needs no copy: ``sidera.recipes`` finds the checkout's own.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

RECIPES = Path("recipes")
PACKAGE = "sidera/recipes"


class BuildWithRecipes(build_py):
    """Copies ``recipes/<dataset>/<system>.toml`` into the package."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for source, target in self._recipes().items():
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *self._recipes().values()]

    def _recipes(self) -> dict[str, str]:
        """Source -> place in the build."""
        sources = sorted(RECIPES.glob("*/*.toml"))
        if not sources:
            raise FileNotFoundError(f"no recipes at {RECIPES.resolve()}: a wheel without them would be broken")
        return {str(path): str(Path(self.build_lib, PACKAGE, path.relative_to(RECIPES))) for path in sources}


setup(cmdclass={"build_py": BuildWithRecipes})
