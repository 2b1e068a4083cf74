"""Errors that are the user's to mend: shown as one line, never as a traceback."""


class UserError(Exception):
    """Something outside the program is wrong; the message names it and the mend, in one line."""


class UnreadableImage(Exception):
    """One image cannot be read; the message is its reason in the quarantine table."""


class UnreachableFile(UnreadableImage):
    """The disk did not hand the file over; another time it may, and the image may be fine."""


class Notice(UserWarning):
    """Something that the user should look at and that stops nothing; shown as one line."""
