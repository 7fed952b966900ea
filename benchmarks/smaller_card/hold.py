"""Take all of a GPU's memory but so many GiB, until standard input ends: `python hold.py 6.9`."""

import sys

import torch

wanted = float(sys.argv[1]) * 2**30
torch.zeros(1, device="cuda")
held = torch.empty(int(torch.cuda.mem_get_info()[0] - wanted), dtype=torch.uint8, device="cuda")
print(f"{torch.cuda.mem_get_info()[0] / 2**30:.2f} GiB free", flush=True)
sys.stdin.read()
