"""The Standard Webhooks library's word on a delivery.

stdin: {"secret", "headers", "body"}; stdout: {"event"}, or {"refused"} and exit code 1.
"""

import json
import sys

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

given = json.load(sys.stdin)
secret = given["secret"]
# A secret without the prefix is its own key.
webhook = Webhook(secret if secret.startswith("whsec_") else secret.encode())
try:
    print(json.dumps({"event": webhook.verify(given["body"], given["headers"])}))
except WebhookVerificationError as error:
    print(json.dumps({"refused": str(error)}))
    sys.exit(1)
