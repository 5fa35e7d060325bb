"""Every error a user can meet, each with the exit code the `dpr` command ends with.

A message is one sentence that says what is wrong, where, which value, what is allowed and what to do.
"""

from collections.abc import Collection


class DprError(Exception):
    """Base of all errors that a user can fix; any other exception that escapes is a bug in dpr."""

    exit_code = 1


class RecipeError(DprError):
    """A recipe or command line that cannot be used."""

    exit_code = 2


class CorpusError(DprError):
    """Input that cannot be read as the corpus the recipe names."""

    exit_code = 9


class OtherFileError(CorpusError):
    """A file that is sound, but of no known format, or without the columns that the recipe names.

    `columns`: the names of its columns, where they are known.
    """

    def __init__(self, message: str, columns: Collection[str] = ()) -> None:
        super().__init__(message)
        self.columns = tuple(columns)


class EncoderError(DprError):
    """A model that cannot be loaded, or vectors of different encoders that would be mixed."""

    exit_code = 4


class StoreError(DprError):
    """A store that cannot be read or written, or that breaks its contract."""

    exit_code = 5


class MissingObjectError(StoreError):
    """A named object that is not in the store."""


class IntegrityError(DprError):
    """Bytes, counts or checksums that disagree with the record made when they were written."""

    exit_code = 6


class IndexBuildError(DprError):
    """An index that cannot be chosen, trained, built or merged as requested."""

    exit_code = 7


class ConflictError(DprError):
    """Another run or publisher holds what this one needs."""

    exit_code = 8


class PublishRaceError(ConflictError):
    """Another publisher was first; nothing was changed, and the run can be planned again from the new snapshot."""


class GateError(DprError):
    """The gate measured less than the recipe demands, so nothing was published."""

    exit_code = 3


class ServeError(DprError):
    """The service cannot start or cannot answer."""

    exit_code = 10


class RefusedError(ServeError):
    """A request that a running service refused."""

    def __init__(self, message: str, status: int, request_id: str) -> None:
        super().__init__(message)
        self.status, self.request_id = status, request_id


class UnreachableError(ServeError):
    """A service that gave no answer."""


class UnitError(DprError):
    """A unit of work failed; its finished siblings are kept and the run can be started again."""

    exit_code = 11


class ClusterError(DprError):
    """A Ray cluster that cannot be joined."""

    exit_code = 12


class RoomError(DprError):
    """A machine with too little disk or memory for its work."""

    exit_code = 13


class OutputError(DprError):
    """A result that was made, and cannot be written where the command prints it."""

    exit_code = 14


class TrainingError(DprError):
    """A training that cannot go on; its last good checkpoint is kept."""

    exit_code = 15
