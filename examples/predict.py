"""Ask a tabular model with nothing but the standard library, and look at what the call cost.

MODELPORT_BASE_URL=http://127.0.0.1:8000 MODELPORT_API_KEY=mp_live_… python examples/predict.py
"""

import json
import os
from urllib.request import Request, urlopen

base_url, key = os.environ["MODELPORT_BASE_URL"], os.environ["MODELPORT_API_KEY"]
body = json.dumps({"model": "iris", "inputs": [[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]]}).encode()
headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

with urlopen(Request(f"{base_url}/v1/predict", data=body, headers=headers)) as response:
    answer = json.load(response)
    cost = response.headers["x-cost-usd"]
for prediction in answer["predictions"]:
    print(prediction)
print(f"{answer['model']} version {answer['model_version']}, {answer['latency_ms']} ms, ${cost}")
