/* Messages of any bytes: each is of one class, its parts lie inside it, no byte behind it is read, and the rules give one
 * answer whatever they are. */
#include <hsmcore/payload.h>

#include "input.h"

enum { ADDRESSES = 4 };

static void check_inside(const uint8_t *message, size_t size, const uint8_t *part, size_t length) {
    REQUIRE(part >= message && length <= size && (size_t)(part - message) <= size - length);
}

static void check_rules(struct input *input, const hsm_transaction *transaction) {
    uint8_t lists[3][ADDRESSES * HSM_ADDRESS];
    for (size_t i = 0; i < 3; i++) {
        /* A key of the transaction, or zeros: the System program. */
        size_t key = take_u8(input);
        memset(lists[i], 0, sizeof lists[i]);
        if (key < transaction->key_count) {
            memcpy(lists[i] + sizeof lists[i] - HSM_ADDRESS, transaction->keys + key * HSM_ADDRESS, HSM_ADDRESS);
        }
    }
    uint8_t which = take_u8(input);
    hsm_rules rules = {
        .programs = (which & 1) != 0 ? lists[0] : NULL,
        .program_count = (size_t)(which >> 6) + 1,
        .recipients = (which & 2) != 0 ? lists[1] : NULL,
        .recipient_count = (size_t)(which >> 6) + 1,
        .owned = lists[0],
        .owned_count = (which & 8) != 0 ? ADDRESSES : 0,
        .max_fee = (which & 4) != 0 ? 5000 : 0,
        .role = (hsm_role)((which >> 3) % 3),
        .signers = lists[2],
        .signer_count = ADDRESSES,
    };
    memset(rules.forms, (which & 32) != 0 ? 0xff : which, sizeof rules.forms);
    hsm_judgement judgement;
    hsm_refusal refusal = hsm_rules_judge(&rules, transaction, &judgement);
    REQUIRE((refusal == HSM_REFUSAL_UNSOUND) == (transaction->sound == 0));
    REQUIRE(refusal != HSM_REFUSAL_PROGRAM || (rules.programs != NULL && judgement.address != NULL));
    REQUIRE(refusal != HSM_REFUSAL_RECIPIENT || (rules.recipients != NULL && judgement.form->recipient > 0));
    REQUIRE(refusal != HSM_REFUSAL_OWNED || rules.owned_count > 0);
    REQUIRE(!judgement.moves || rules.owned_count > 0);
    REQUIRE((refusal == HSM_REFUSAL_FEE) <= (rules.max_fee > 0 && judgement.fee > rules.max_fee));
    REQUIRE(refusal != HSM_REFUSAL_NONE || rules.max_fee == 0 || judgement.fee <= rules.max_fee);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct input input = {data, size};
    uint8_t rules[4];
    take(&input, rules, sizeof rules);
    size = input.left;
    /* On the heap and as long as it says, so that reading past its end is seen. */
    uint8_t *message = malloc(size > 0 ? size : 1);
    REQUIRE(message != NULL);
    take(&input, message, size);
    hsm_payload_parts parts;
    hsm_payload class = hsm_payload_of(message, size, &parts);
    REQUIRE(class < HSM_PAYLOAD_COUNT);
    if (class >= HSM_PAYLOAD_TX_LEGACY && class <= HSM_PAYLOAD_TX_V1) {
        const hsm_transaction *read = &parts.transaction;
        check_inside(message, size, read->keys, (size_t)read->key_count * HSM_ADDRESS);
        check_inside(message, size, read->instructions, read->instructions_len);
        REQUIRE(read->sound == 0 || (read->signers > 0 && read->signers <= read->key_count));
        REQUIRE(read->loaded <= size);
        struct input more = {rules, sizeof rules};
        check_rules(&more, read);
    } else if (class >= HSM_PAYLOAD_BLOCK && class <= HSM_PAYLOAD_STATE_ROOT) {
        check_inside(message, size, parts.ordered.domain, parts.ordered.domain_len);
        REQUIRE(parts.ordered.domain_len >= 1 && parts.ordered.domain_len <= HSM_MOST_DOMAIN);
    }
    free(message);
    return 0;
}
