"""Sites that an earlier run has solved, by the hash of all that decides their codes.

In a sequential walk the codes of a site follow from: the model before the pass and the samples
(their hash is ``Context.origin``), the solver with its options and how statistics are gathered,
which sites are visited, in which segments, the formats of the sites in the segments before, and
its own. Statistics of the float network do not depend on the formats before. So another format for
one layer leaves what was solved before it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from onnxq.errors import WorkFolderError
from onnxq.formats import Format
from onnxq.graph.sites import Site
from onnxq.passes.base import Context
from onnxq.passes.site_solving import SolvedSite
from onnxq.runtime.work_folder import hash_of

__all__ = ["FinishedSites"]


class FinishedSites:
    """The finished sites of one pass."""

    def __init__(
        self,
        context: Context,
        formats: Mapping[str, Format],
        settings: Sequence[object],
        sees_formats: bool,
    ) -> None:
        """Look nothing up yet.

        Args:
            context: its work folder and origin; nothing is kept without.
            formats: by name of the site.
            settings: of the pass: plain values.
            sees_formats: whether what was stored before changes what a site sees.
        """
        self._work, self._origin = context.work, context.origin
        self._formats = {name: str(fmt) for name, fmt in formats.items()}
        self._settings, self._sees_formats = settings, sees_formats
        self._keys: dict[str, str] = {}
        self._found: set[str] = set()
        self._stopped = False

    @property
    def notes(self) -> tuple[str, ...]:
        """How many sites were not solved again; nothing when none was."""
        if not self._found:
            return ()
        return (f"{len(self._found)} of {len(self._keys)} sites were solved in an earlier run",)

    def find(self, segments: Sequence[Sequence[Site]]) -> Collection[Site]:
        """Those of the sites, segment by segment, that are finished."""
        if self._work is None:
            return ()
        names = [[site.name for site in segment] for segment in segments]
        walk = hash_of(self._origin, self._settings, names)
        before = walk
        for segment in names:
            here = [(name, self._formats[name]) for name in segment]
            self._keys.update((name, hash_of(before, name, fmt)) for name, fmt in here)
            if self._sees_formats:
                before = hash_of(before, here)
        sites = [site for segment in segments for site in segment]
        self._found = {s.name for s in sites if self._work.verify(self._keys[s.name])}
        return {site for site in sites if site.name in self._found}

    def read(self, site: Site) -> SolvedSite | None:
        """The codes of a site that `find` found; None for another one.

        Raises:
            WorkFolderError: they have vanished since.
        """
        if self._work is None or site.name not in self._found:
            return None
        piece = self._work.read(self._keys[site.name])
        if piece is None:
            raise WorkFolderError(
                f"The finished codes of site {site.name!r} were in {str(self._work.path)!r} when "
                "the run began and have vanished: run the same command again."
            )
        return SolvedSite.of(piece)

    def stop(self) -> None:
        """Keep nothing more that depends on what is stored before it: a site stays in float."""
        self._stopped = self._sees_formats

    def keep(self, site: Site, solved: SolvedSite) -> None:
        """Keep what was found for a site, unless it is there."""
        if self._stopped:
            return
        if self._work is not None and not self._work.verify(self._keys[site.name]):
            piece = solved.piece()
            about = {**piece.about, "site": site.name, "format": self._formats[site.name]}
            self._work.keep(self._keys[site.name], about, piece.arrays)
