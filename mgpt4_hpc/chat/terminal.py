"""The conversation on a terminal, or on pipes: answers on stdout, everything else on stderr."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from mgpt4_hpc.chat.session import ChatSession
from mgpt4_hpc.errors import ConfigError, MgptError

HELP = """\
/image FILE   show another image (or several, or names in quotes) with the next question
/reset        start a new conversation, without images
/history      what was said so far
/save FILE    write the conversation; `mgpt4 chat --resume FILE` continues it
/help         this list
/quit         leave (Ctrl-D does too)
Ctrl-C breaks off an answer; what was broken off is not remembered."""

PROMPT = "> "
_NO_IMAGE = "(no image: /image FILE adds one; only stage 3 trains on conversations without any)"


def converse(session: ChatSession, *, interactive: bool | None = None) -> int:
    """Read questions and commands from stdin until it ends.

    Args:
        session: the conversation.
        interactive: prompt, and keep the line editable; by default if stdin is a terminal.

    Returns:
        Exit code: 1 if anything that came from a pipe failed, since no user saw the message.
    """
    interactive = sys.stdin.isatty() if interactive is None else interactive
    failed = False
    while True:
        line = _read(interactive)
        if line is None:
            return int(failed and not interactive)
        try:
            if not _obey(session, line):
                return int(failed and not interactive)
        except MgptError as error:
            failed = True
            _show(f"error: {error}")
        except KeyboardInterrupt:
            _show("\n(broken off)")


def _obey(session: ChatSession, line: str) -> bool:
    """Carry out one line; False ends the conversation."""
    line = line.strip()
    if not line:
        return True
    if not line.startswith("/"):
        _answer(session, line)
        return True
    command, _, rest = line.partition(" ")
    rest = rest.strip()
    if command in ("/quit", "/exit"):
        return False
    actions: dict[str, Callable[[], None]] = {
        "/image": lambda: _image(session, rest),
        "/reset": lambda: _reset(session),
        "/history": lambda: _history(session),
        "/save": lambda: _save(session, rest),
        "/help": lambda: _show(HELP),
    }
    if command not in actions:
        _show(f"no command {command}; there are\n{HELP}")
    else:
        actions[command]()
    return True


def _answer(session: ChatSession, question: str) -> None:
    if not session.conversation.images and not session.conversation.turns:
        _show(_NO_IMAGE)
    pieces = session.ask(question)
    try:
        while True:
            try:
                sys.stdout.write(_printable(next(pieces)))
                sys.stdout.flush()
            except StopIteration as end:
                answer = end.value
                break
    finally:
        pieces.close()
    sys.stdout.write("\n")
    sys.stdout.flush()
    if not answer.stopped:
        _show(
            "(cut off: the conversation fills the model's context; /reset starts a new one)"
            if session.context_is_limit
            else "(cut off at the limit of tokens; --max-new-tokens raises it)"
        )


def _printable(text: str) -> str:
    """Without control characters: what a model says must not steer a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def _image(session: ChatSession, name: str) -> None:
    if not name:
        _show("usage: /image FILE")
        return
    for path in _paths(name):
        session.add_image(path)
        _show(f"image {len(session.conversation.images)}: {path}")


def _reset(session: ChatSession) -> None:
    session.reset()
    _show("new conversation; add an image with /image FILE")


def _history(session: ChatSession) -> None:
    for turn in session.conversation.turns:
        for image in turn.images:
            _show(f"  [{image}]")
        _show(f"{PROMPT}{turn.question}\n{turn.answer}")
    for image in session.conversation.pending:
        _show(f"  [{image}]")


def _save(session: ChatSession, name: str) -> None:
    if not name:
        _show("usage: /save FILE")
        return
    paths = _paths(name)
    if len(paths) != 1:
        raise ConfigError(f"/save takes one file, not {len(paths)}", fix="put its name in quotes")
    session.save(paths[0])
    turns = len(session.conversation.turns)
    _show(f"saved {turns} {'turn' if turns == 1 else 'turns'} in {paths[0]}")


def _paths(text: str) -> list[Path]:
    """The files that a line names: as a shell reads it, or all of it where that is a file."""
    whole = Path(text).expanduser()
    if _is_file(whole):  # typed as it is, with its spaces and all
        return [whole]
    try:
        return [Path(word).expanduser() for word in shlex.split(text)]
    except ValueError as error:  # a quote that is not closed
        raise ConfigError(f"{text} cannot be read: {error}", fix="close the quote") from None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False  # longer than a name may be


def _read(interactive: bool) -> str | None:
    """The next line; None at the end."""
    try:
        if interactive:
            import readline  # noqa: F401 - makes the line editable, with its history

            return input(PROMPT)
        line = sys.stdin.readline()
        return line or None
    except EOFError:
        _show("")  # the shell's prompt belongs on a line of its own
        return None
    except KeyboardInterrupt:
        _show("\n(/quit or Ctrl-D leaves)")
        return ""


def _show(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
