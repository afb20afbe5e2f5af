"""Every error that Interlock raises on purpose, as one tree.

```
InterlockError
├── InvalidRequest            the client must change the request       (HTTP 400)
│   ├── MalformedMessage      the bytes are not a message of the protocol
│   ├── InputMismatch         an input is missing, unknown or given twice
│   ├── ShapeMismatch         an input's shape does not fit the signature
│   ├── DatatypeMismatch      an input's datatype or values do not fit
│   ├── UnknownOutput         a requested output does not exist
│   ├── DeadlineInvalid       a time-out is not a number or out of bounds
│   └── RequestTooLarge       more bytes or rows than the limit        (413)
├── NotFound                                                           (404)
│   ├── ModelNotFound
│   └── VersionNotFound
├── Forbidden                 switched off, or the token is wrong      (403)
├── Unsupported               known to the protocol, not offered here  (501)
├── Unavailable               try again later, here or elsewhere       (503)
│   ├── NotReady              the model is not loaded (yet)
│   ├── Overloaded            the wait would exceed the deadline, or the queue is full
│   ├── Draining              this process is about to leave
│   ├── Quarantined           the version crashed too often
│   └── DeadlineExceeded      the answer did not come in time
├── Cancelled                 the caller went away
├── ModelFailed               the model's own fault                    (500)
│   ├── PredictFailed         predict raised
│   ├── OutputMismatch        predict returned what the signature does not allow
│   ├── ModelCrashed          the process that ran it died
│   └── MemoryExhausted       it asked for more memory than it may have
├── ArtifactError             a model file cannot be used
│   ├── DigestMismatch        the bytes are not those that were registered
│   ├── UnknownFormat         no runtime reads it
│   ├── UntrustedArtifact     loading it would run code that nobody vouched for
│   ├── EnvironmentFailed     the packages that it needs cannot be had, or are not there
│   ├── LoadFailed            the runtime refused it
│   └── CheckFailed           it loads, but breaks the contract of a runtime
├── MissingExtra              an optional package is not installed
├── RegistryError             the registry refused or cannot be reached
├── ReleaseRefused            the release cannot start
├── ReleaseFailed             the release was tried and the old version stays
├── LedgerError               the ledger cannot be read or written
│   └── SchemaTooNew          written by a newer Interlock
├── ConfigError               a setting has a value that it must not have
└── NodeUnreachable           no node answers at that home or URL
```
"""


class InterlockError(Exception):
    """The root. `message` is for people: the offending value, the limit and the remedy. `request_id`: the
    server's name for the request that failed, where a client learnt it."""

    request_id: str | None = None

    @property
    def message(self) -> str:
        return str(self.args[0]) if self.args else type(self).__name__


def said(error: BaseException, most: int = 500) -> str:
    """Type and words of what foreign code raised; its own `__str__` may raise, too.

    >>> said(KeyError("a"))
    "KeyError: 'a'"
    """
    try:
        words = str(error)[:most]
    except Exception as other:
        words = f"its words cannot be had: str() of it raised {type(other).__name__}"
    return f"{type(error).__name__}: {words}"


class InvalidRequest(InterlockError):
    pass


class MalformedMessage(InvalidRequest):
    pass


class InputMismatch(InvalidRequest):
    pass


class ShapeMismatch(InvalidRequest):
    pass


class DatatypeMismatch(InvalidRequest):
    pass


class UnknownOutput(InvalidRequest):
    pass


class DeadlineInvalid(InvalidRequest):
    pass


class RequestTooLarge(InvalidRequest):
    pass


class NotFound(InterlockError):
    pass


class ModelNotFound(NotFound):
    pass


class VersionNotFound(NotFound):
    pass


class Forbidden(InterlockError):
    pass


class Unsupported(InterlockError):
    pass


class Unavailable(InterlockError):
    """`retry_after_s`: when trying again has a chance."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotReady(Unavailable):
    pass


class Overloaded(Unavailable):
    pass


class Draining(Unavailable):
    pass


class Quarantined(Unavailable):
    pass


class DeadlineExceeded(Unavailable):
    pass


class Cancelled(InterlockError):
    pass


class ModelFailed(InterlockError):
    pass


class PredictFailed(ModelFailed):
    pass


class OutputMismatch(ModelFailed):
    pass


class ModelCrashed(ModelFailed):
    pass


class MemoryExhausted(ModelFailed):
    pass


class ArtifactError(InterlockError):
    pass


class DigestMismatch(ArtifactError):
    pass


class UnknownFormat(ArtifactError):
    pass


class UntrustedArtifact(ArtifactError):
    pass


class EnvironmentFailed(ArtifactError):
    pass


class LoadFailed(ArtifactError):
    pass


class CheckFailed(ArtifactError):
    pass


class MissingExtra(InterlockError):
    """An optional package is missing; says which extra brings it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; install it with: pip install 'interlock[{extra}]'")


class RegistryError(InterlockError):
    pass


class ReleaseRefused(InterlockError):
    pass


class ReleaseFailed(InterlockError):
    pass


class LedgerError(InterlockError):
    pass


class SchemaTooNew(LedgerError):
    pass


class ConfigError(InterlockError):
    pass


class NodeUnreachable(InterlockError):
    pass
