"""Files: strangers' are opened with care and every failure is explained; what they hold is known by digest; ours are
written whole or not at all. Knows no model."""

from keylayers.files.control_characters import printable
from keylayers.files.foreign import explained, reason
from keylayers.files.regular import check_folder, check_regular

__all__ = ["check_folder", "check_regular", "explained", "printable", "reason"]
