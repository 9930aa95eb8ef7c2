"""One BMC per node: ipmi_sim on 10.7.0.(200+i) port 623. It sits on the cluster's network and has its own power, so
coordinators reach it when the node is dead or its cable is pulled."""
from . import proc
from .core import BMC_PASSWORD, BMC_USER, LAB_DIR, wait_until, LabError

LAN_CONF = """\
name "{name}"
set_working_mc 0x20
  startlan 1
    addr {address} 623
    priv_limit admin
    allowed_auths_callback none md2 md5 straight
    allowed_auths_user none md2 md5 straight
    allowed_auths_operator none md2 md5 straight
    allowed_auths_admin none md2 md5 straight
    guid a123456789abcdefa1234567000000{index:02x}
  endlan
  chassis_control "{script} {state} {name}"
  user 1 true "" "" user 10 none md2 md5 straight
  user 2 true "{user}" "{password}" admin 10 none md2 md5 straight
"""

COMMANDS = """\
mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr
mc_enable 0x20
"""


def start(node):
    folder = node.dir / "bmc"
    folder.mkdir(exist_ok=True)
    (folder / "lan.conf").write_text(LAN_CONF.format(
        name=node.name, address=node.bmc_address, index=node.index, user=BMC_USER, password=BMC_PASSWORD,
        script=LAB_DIR / "bmc-power", state=node.lab.state))
    (folder / "commands").write_text(COMMANDS)
    proc.spawn(node.lab, node.record("bmc"), node.dir / "bmc.log",
               ["ipmi_sim", "-n", "-c", folder / "lan.conf", "-f", folder / "commands", "-s", folder / "state"])


def wait_listening(nodes):
    """Waits until every BMC has its UDP port."""
    def all_bound():
        return proc.run(nodes[0].lab, ["ss", "-Hlun", "sport", "=", "623"], netns=True).stdout.count(":623") >= len(nodes)
    if not wait_until(all_bound, 30, interval=0.1):
        raise LabError(f"a BMC does not listen on port 623; see {nodes[0].lab.state}/n*/bmc.log")
