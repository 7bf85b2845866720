"""Whose a file or a folder is, who else may write there, and who holds a lock.

Where others may write, too, a name means nothing by itself: somebody may have put a link there, or a file of his own.
"""

from wattline.ownership.files import ROOT, ForeignFile, check_folder, check_plain, open_lock, open_own, user_name
from wattline.ownership.holder import Holder, holder_of

__all__ = [
    "ROOT",
    "ForeignFile",
    "Holder",
    "check_folder",
    "check_plain",
    "holder_of",
    "open_lock",
    "open_own",
    "user_name",
]
