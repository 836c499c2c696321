"""Take the credentials out of URLs before they are recorded, logged or printed.

`tracking.uri`, `study_url` and `storage` may carry a user and a password, or a token. What remains
here still says which server it was.
"""

import re

# `scheme://` up to the last @ of the authority. The first branch lets a password contain an
# unescaped slash, which SQLAlchemy accepts; a bare port (`host:5000/a@b`) is no password.
_USERINFO = re.compile(r"(?<=://)(?:[^/\s:@'\"]*:(?!\d+/)[^\s'\"]*|[^/\s'\"]*)@")
_SECRET_QUERY = re.compile(
    r"([?&;][\w.-]*(?:password|passwd|pwd|secret|token|signature|credential|api_?key|sig)=)"
    r"[^&;\s'\"]+",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """`text` with the user, password or token of every URL in it replaced by `***`.

    Query values whose name speaks of a secret (`?password=`, `&X-Amz-Signature=`) are replaced
    too. Text without a URL comes back unchanged.
    """
    return _SECRET_QUERY.sub(r"\1***", _USERINFO.sub("***@", text))
