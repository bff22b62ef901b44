"""From prompts to tokens: sampling, the decode loop on the device, and one-call completion."""
