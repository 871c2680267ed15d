"""The one exception that stands for a mistake of the user's."""


class UserError(ValueError):
    """A mistake that the user can mend; the command line shows its text without a traceback and exits with 2.

    The text says where, what was found, what is allowed and what to do. Several findings are several lines.
    """
