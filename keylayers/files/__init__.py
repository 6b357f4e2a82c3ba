"""Files as strangers write them: only regular ones are opened, only so much is unpacked, every failure is explained."""

from keylayers.files.foreign import explained, reason
from keylayers.files.printable import printable
from keylayers.files.regular import check_folder, check_regular

__all__ = ["check_folder", "check_regular", "explained", "printable", "reason"]
