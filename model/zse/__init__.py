"""ZSE-SBIR: tokenizer, cross-attention and kernel relation network (Lin et al., CVPR 2023)."""
