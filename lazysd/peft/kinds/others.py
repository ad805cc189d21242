"""Kinds that are known by name, so that what they are can be said. Source: peft 0.21.2, what it saves of each."""

from __future__ import annotations

from ..kind import Unmerged

KINDS = (
    Unmerged("AdaLoRA", "ADALORA", (".lora_E", ".ranknum")),
    Unmerged("IA3", "IA3", (".ia3_l",)),
    Unmerged("LoHa", "LOHA", (".hada_w", ".hada_t")),
    Unmerged("LoKr", "LOKR", (".lokr_w", ".lokr_t")),
    Unmerged("VeRA", "VERA", (".vera_lambda_",)),
    Unmerged("OFT", "OFT", (".oft_R", ".oft_r")),
    Unmerged("BOFT", "BOFT", (".boft_R", ".boft_s")),
    Unmerged("HRA", "HRA", (".hra_u",)),
    Unmerged("FourierFT", "FOURIERFT", (".fourierft_spectrum",)),
    Unmerged("VB-LoRA", "VBLORA", (".vblora_",)),
    Unmerged("RandLoRA", "RANDLORA", (".randlora_",)),
    Unmerged("SHiRA", "SHIRA", (".shira_weight",)),
    Unmerged("MiSS", "MISS", (".miss_block",)),
    Unmerged("Bone", "BONE", (".bone_block",)),
    Unmerged("C3A", "C3A", (".c3a_kernel",)),
    Unmerged("DeLoRA", "DELORA", (".delora_",)),
    Unmerged("RoAd", "ROAD", (".road_theta", ".road_alpha")),
    Unmerged("X-LoRA", "XLORA", ("xlora_classifier",)),
    Unmerged("prompt tuning", "PROMPT_TUNING"),
    Unmerged("prefix tuning", "PREFIX_TUNING"),
    Unmerged("P-tuning", "P_TUNING"),
    Unmerged("LayerNorm tuning", "LN_TUNING"),
    Unmerged("trainable tokens", "TRAINABLE_TOKENS", (".trainable_tokens_",)),
)
