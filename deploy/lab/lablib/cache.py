"""What is fetched or built once per host: kernel, initramfs, and the answer to "does KVM work here?".

Everything is made in a temporary folder beside its place and renamed into it, under a lock, so a reader never sees
half of anything and two labs never build the same thing twice."""
import hashlib
import lzma
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from . import lock
from .core import LAB_DIR, LabError

CACHE = Path(os.environ.get("MAINSTAY_CACHE", "/var/cache/mainstay-lab")).absolute()
KERNEL_PACKAGE = "linux-image-amd64"
BUSYBOX = Path("/usr/bin/busybox")
MODULES = ("virtio_pci virtio_net virtio_blk virtio_rng 9pnet_virtio 9p overlay ext4 crc32c_generic crc32_generic"
           " crc32-pclmul rdma_rxe rdma_ucm ib_uverbs sch_netem softdog tun"
           " bridge ifb sch_plug sch_ingress cls_u32 act_mirred").split()
# Never used by a VM of the lab, and most of the package's size.
USELESS_MODULES = "sound drivers/gpu drivers/media drivers/staging drivers/net/wireless drivers/iio drivers/usb".split()
KVM_MARKER = "mainstay-lab: kernel is up"
KVM_DEADLINE = 10.0
XZ_MAGIC = b"\xfd7zXZ\x00"


class Kernel:
    """An unpacked kernel package in the cache."""

    def __init__(self, folder):
        self.dir = folder
        self.version = folder.name.removeprefix("kernel-")
        self.image = folder / "vmlinux" if (folder / "vmlinux").exists() else folder / "vmlinuz"
        self.modules = folder / "lib/modules" / self.version


def kernel(stage):
    """The newest kernel in the cache; fetched with apt-get when there is none."""
    with lock.held(CACHE / "lock"):
        have = sorted(CACHE.glob("kernel-*"), key=lambda path: path.stat().st_mtime)
        if have:
            return Kernel(have[-1])
        version = _kernel_version()
        stage(f"fetching the Debian kernel {version} (once per host)")
        return Kernel(_build(CACHE / f"kernel-{version}", lambda folder: _unpack_kernel(folder, version)))


def _kernel_version():
    text = _output(["apt-cache", "depends", KERNEL_PACKAGE], "is this Debian with up-to-date lists (apt-get update)?")
    found = re.search(r"Depends: linux-image-(\S+)", text)
    if not found:
        raise LabError(f"apt-cache knows no kernel behind {KERNEL_PACKAGE}; run apt-get update and try again")
    return found.group(1)


def _unpack_kernel(folder, version):
    download = folder / "download"
    download.mkdir()
    # Sandbox user root: apt's own user may not write into this folder, and would only warn about it.
    _output(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", f"linux-image-{version}"],
            "the kernel package could not be fetched; is a Debian mirror reachable (apt-get update)?", cwd=download)
    package = next(download.glob("*.deb"))
    _output(["dpkg-deb", "-x", package, download / "tree"], "the kernel package could not be unpacked")
    (download / f"tree/boot/vmlinuz-{version}").rename(folder / "vmlinuz")
    (download / "tree/lib").rename(folder / "lib")
    for useless in USELESS_MODULES:
        shutil.rmtree(folder / "lib/modules" / version / "kernel" / useless, ignore_errors=True)
    _output(["depmod", "-b", folder, version], "depmod failed on the unpacked kernel")
    shutil.rmtree(download)
    _extract_vmlinux(folder)


def _extract_vmlinux(folder):
    """Saves every boot the slowest part of it under emulation, the kernel unpacking itself. vmlinuz works as well."""
    image = (folder / "vmlinuz").read_bytes()
    offset = image.find(XZ_MAGIC)
    if offset < 0:
        return
    try:
        kernel_elf = lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(image[offset:])
    except lzma.LZMAError:
        return
    if kernel_elf.startswith(b"\x7fELF"):
        (folder / "vmlinux").write_bytes(kernel_elf)


def initramfs(kern):
    """Path of the initramfs for this kernel, this guest/init and this list of modules."""
    files = _module_files(kern)
    digest = hashlib.sha256()
    for part in (kern.version, " ".join(files), (LAB_DIR / "guest/init").read_text(), Path(__file__).read_text()):
        digest.update(part.encode() + b"\0")
    digest.update(BUSYBOX.read_bytes())
    target = CACHE / f"initramfs-{kern.version}-{digest.hexdigest()[:16]}"
    with lock.held(CACHE / "lock"):
        if not target.exists():
            _build(target, lambda folder: _make_initramfs(folder, files))
    return target / "initramfs.cpio"


def _module_files(kern):
    """Module files in the order in which they have to be loaded."""
    text = _output(["modprobe", "-S", kern.version, "-d", kern.dir, "--show-depends", "-a", *MODULES],
                   f"a module is missing in {kern.modules}; remove {kern.dir} to fetch the kernel again")
    files = [line.split()[1] for line in text.splitlines() if line.startswith("insmod ")]
    return list(dict.fromkeys(files))


def _make_initramfs(folder, module_files):
    root = folder / "root"
    for name in ("bin", "modules", "proc", "sys", "dev", "lower", "upper", "root"):
        (root / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin/busybox")
    shutil.copy(LAB_DIR / "guest/init", root / "init")
    (root / "init").chmod(0o755)
    for number, file in enumerate(module_files):
        shutil.copy(file, root / f"modules/{number:02}-{Path(file).name}")
    names = "\n".join(sorted(str(path.relative_to(root)) for path in root.rglob("*")))
    with open(folder / "initramfs.cpio", "wb") as archive:
        # Not compressed: QEMU loads it at once, while an emulated CPU would have to unpack it.
        subprocess.run(["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"], cwd=root, input=names.encode(),
                       stdout=archive, check=True)
    shutil.rmtree(root)


def kvm_works(kern, initrd, stage, environment):
    """Whether a VM really comes up with KVM: /dev/kvm may be there and hang. Tried once per boot of the host."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    answer = CACHE / f"kvm-{boot_id}"
    with lock.held(CACHE / "lock"):
        if not answer.exists():
            stage("trying whether KVM works (once per boot of this host)")
            for old in CACHE.glob("kvm-*"):
                old.unlink()
            works = _try_kvm(kern, initrd, environment)
            temporary = answer.with_suffix(".new")
            temporary.write_text("yes\n" if works else "no\n")
            temporary.rename(answer)
        return answer.read_text().strip() == "yes"


def _try_kvm(kern, initrd, environment):
    """True when a QEMU with KVM prints the marker of guest/init in time."""
    qemu = subprocess.Popen(
        ["timeout", "-s", "KILL", str(KVM_DEADLINE),
         "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc", "-m", "256",
         "-accel", "kvm", "-cpu", "host", "-kernel", kern.image, "-initrd", initrd, "-no-reboot",
         "-append", "console=ttyS0 quiet panic=-1 mainstay_lab.probe=1", "-serial", "stdio"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
    with qemu:
        seen = any(KVM_MARKER in line.decode(errors="replace") for line in qemu.stdout)
        qemu.terminate()
        return seen


def _build(target, make):
    """Makes the folder target by make(temporary folder); callers hold the cache lock."""
    CACHE.mkdir(parents=True, exist_ok=True)
    for stale in CACHE.glob(".build-*"):          # left by one that was killed: the lock says nobody is at it
        shutil.rmtree(stale)
    folder = Path(tempfile.mkdtemp(prefix=".build-", dir=CACHE))
    make(folder)
    folder.chmod(0o755)
    folder.rename(target)
    os.utime(target, (time.time(),) * 2)
    return target


def _output(command, hint, cwd=None):
    done = subprocess.run([str(word) for word in command], cwd=cwd, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise LabError(f"'{' '.join(map(str, command))}' failed: {done.stderr.strip()[-500:]}; {hint}")
    return done.stdout
