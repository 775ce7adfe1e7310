import torch

from late_interaction import LateInteractionLoss

loss = LateInteractionLoss()  # normalises the tokens; its temperature is a parameter
patches, words = torch.randn(8, 49, 256, requires_grad=True), torch.randn(8, 12, 256, requires_grad=True)
mask = torch.arange(12) < torch.tensor([[4], [8], [7], [9], [6], [10], [5], [11]])  # true where a word exists
output = loss(patches, words, mask)
output.loss.backward()
