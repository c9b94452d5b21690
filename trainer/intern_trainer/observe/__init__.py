"""What a run says about itself: log, phases, versions, speed and memory."""
