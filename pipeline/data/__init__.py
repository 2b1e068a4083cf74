"""Sources, formats, manifest, audit, alignment, preprocessing, swaps."""

import logging
import warnings

# pydicom quotes header values in its warnings and its log, and none may be shown.
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
logging.getLogger("pydicom").disabled = True
