"""Other tools' files as sweep files: `init --from`.

other_tools            which tool's file it is, and the sweep file that comes of it
carried                what is taken over, and what is not, with the reason
meanings               what other tools' settings mean here
wandb_sweep            sweeps of Weights & Biases
axolotl_config         configurations of Axolotl, and its sweeps
llama_factory_config   configurations of LLaMA-Factory
"""
