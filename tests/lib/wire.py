"""Messages of proto/mainstay.proto by hand, for tests that send what mainstayctl would not. Standard library only."""
import socket
import struct


def varint(value):
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def field(number, value):
    """One protobuf field: a number, or bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def fixed64(number, value):
    return varint(number << 3 | 1) + struct.pack("<Q", value)


def frame(body, magic=0x534d, version=1, length=None):
    return struct.pack("<HHI", magic, version, len(body) if length is None else length) + body


def exchange(path, data, seconds=10):
    """What comes back until the other side closes, or nothing more comes for a while; and whether it has closed."""
    got = b""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(seconds)
        sock.connect(path)
        sock.sendall(data)
        try:
            while True:
                part = sock.recv(65536)
                if not part:
                    return got, True
                got += part
                sock.settimeout(1)
        except TimeoutError:
            return got, False
