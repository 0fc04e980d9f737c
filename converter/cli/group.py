"""A group of commands with one that may go unnamed.

For: `shallop-convert MODEL ...`, which is `shallop-convert convert MODEL ...`, and shell completion that
offers both the commands and files.
Not for: what the commands do.
"""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

DEFAULT = "convert"
_OLD_NAMES = {"--list-targets": "targets"}


class DefaultGroup(click.Group):
    """A group whose first word may be an argument or an option of its default command.

    A model file that is called as a command is, such as `inspect`, is written `./inspect`.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Puts the command's name in front where it was left out."""
        return super().parse_args(ctx, self._named(ctx, args))

    def _named(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        if not args or args[0] in self.commands:
            return args
        for old, new in _OLD_NAMES.items():
            if old in args:
                return [new, *(word for word in args if word != old)]
        if args[0].partition("=")[0] in own:
            return args
        return [DEFAULT, *args]

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The commands and the group's options, and what the default command takes first."""
        found = super().shell_complete(ctx, incomplete)
        if incomplete.startswith("-"):
            default = self.commands[DEFAULT]
            known = {item.value for item in found}
            with click.Context(default, info_name=DEFAULT, parent=ctx, resilient_parsing=True) as inner:
                others = default.shell_complete(inner, incomplete)
            return found + [item for item in others if item.value not in known]
        # A shell takes `file` as leave to offer files where nothing else matches.
        return [CompletionItem(incomplete, type="file"), *found]
