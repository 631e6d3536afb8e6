"""The servers, the clients and the drawing of scripts/pictures."""

import contextlib
import ctypes
import html
import os
import socket
import struct
import sys
import threading
import time

SERVER4, SERVER6 = "192.0.2.2", "2001:db8::2"


def name_process(name):
    ctypes.CDLL(None).prctl(15, name.encode(), 0, 0, 0)  # PR_SET_NAME


def listen(port, backlog=64):
    listener = socket.socket(socket.AF_INET6)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("::", port))
    listener.listen(backlog)
    return listener


def echo(connection):
    with connection, contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            connection.sendall(data)


def accept_all(listener, delay):
    while True:
        time.sleep(delay)
        connection, _ = listener.accept()
        threading.Thread(target=echo, args=[connection], daemon=True).start()


def serve():
    for name, port, delay in [("web", 443, 0), ("db", 5432, 0.02), ("sshd", 22, 0)]:
        listener = listen(port)
        if os.fork() == 0:
            name_process(name)
            accept_all(listener, delay)
    # Its accept queue has room for one connection, and it never accepts any.
    name_process("shop")
    _shop = listen(8080, backlog=0)
    os.write(3, b"ready\n")
    time.sleep(3600)


def connect(saddr, port, timeout=2):
    daddr = SERVER6 if ":" in saddr else SERVER4
    return socket.create_connection((daddr, port), timeout, (saddr, 0))


def fates():
    """One connection attempt of each kind."""
    kept = []
    for attempt in [
        ("192.0.2.10", 443),
        ("2001:db8::10", 443),
        ("192.0.2.11", 5432),
        ("192.0.2.12", 22),
        ("192.0.2.12", 23),
        ("192.0.2.12", 25, 0.4),
        ("192.0.2.10", 8080),
        ("192.0.2.11", 8080, 1.4),
    ]:
        with contextlib.suppress(OSError):
            kept.append(connect(*attempt))
        time.sleep(0.1)
    # Reset the last connection while it waits for accept(2).
    kept[-1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    kept[-1].close()
    time.sleep(5)


def talk(saddr, port, size, every):
    connection = connect(saddr, port, 60)
    while True:
        connection.sendall(bytes(size))
        left = size
        while left:
            left -= len(connection.recv(left))
        time.sleep(every)


def flows():
    """Long connections with different rates."""
    for each in [
        ("192.0.2.11", 443, 20000, 0.02),
        ("2001:db8::10", 443, 12000, 0.02),
        ("192.0.2.12", 5432, 600, 0.02),
        ("192.0.2.10", 22, 40, 0.2),
        ("192.0.2.12", 25, 1, 1),
    ]:
        threading.Thread(target=talk, args=each, daemon=True).start()
    time.sleep(20)


def svg(width):
    """Draws a screen that is given with its escape sequences. Its text becomes the <desc> of the SVG."""
    from rich.console import Console
    from rich.terminal_theme import MONOKAI
    from rich.text import Text

    screen = Text.from_ansi(sys.stdin.read().rstrip("\n"))
    console = Console(record=True, width=width, file=open(os.devnull, "w"), force_terminal=True)
    console.print(screen, overflow="crop", no_wrap=True)
    print(
        console.export_svg(
            title="",
            theme=MONOKAI,
            unique_id="t",
            font_aspect_ratio=0.6,
            code_format=f"""<svg viewBox="0 0 {{width}} {{height}}" xmlns="http://www.w3.org/2000/svg">
<desc>
{html.escape(screen.plain).replace('{', '{{').replace('}', '}}')}
</desc>
<style>
.{{unique_id}}-matrix {{{{ font-family: monospace; font-size: {{char_height}}px; line-height: {{line_height}}px; }}}}
{{styles}}
</style>
<defs>
<clipPath id="{{unique_id}}-clip-terminal">
<rect x="0" y="0" width="{{terminal_width}}" height="{{terminal_height}}"/>
</clipPath>
{{lines}}
</defs>
{{chrome}}
<g transform="translate({{terminal_x}}, {{terminal_y}})" clip-path="url(#{{unique_id}}-clip-terminal)">
{{backgrounds}}
<g class="{{unique_id}}-matrix" xml:space="preserve">
{{matrix}}
</g>
</g>
</svg>""",
        )
    )


{"serve": serve, "fates": fates, "flows": flows, "svg": lambda: svg(int(sys.argv[2]))}[sys.argv[1]]()
