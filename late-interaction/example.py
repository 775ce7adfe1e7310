import torch

from late_interaction import LateInteractionLoss

loss = LateInteractionLoss()  # normalises the tokens; its temperature is a parameter
patches, words = torch.randn(8, 49, 256, requires_grad=True), torch.randn(60, 256, requires_grad=True)
output = loss(patches, words, torch.tensor([4, 8, 7, 9, 6, 10, 5, 11]))  # 60 words in 8 captions, without padding
output.loss.backward()
