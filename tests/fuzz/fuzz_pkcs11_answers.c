/* What a gateway says to libhsmcore_pkcs11.so: whatever it is, no byte behind it is read, and what is known afterwards
 * can be found and read as objects. */
#include "../../clients/pkcs11/p11.h"

#include "input.h"

static void check_objects(void) {
    enum { MOST = 16 };
    for (CK_SLOT_ID slot = 0; slot < p11_slot_count; slot++) {
        CK_OBJECT_HANDLE found[MOST];
        CK_ULONG next = 0, count = p11_match(slot, NULL, 0, found, MOST, &next);
        REQUIRE(count <= MOST && p11_slots[slot].name_len == strlen(p11_slots[slot].name));
        for (CK_ULONG i = 0; i < count; i++) {
            bool is_private = false;
            const struct p11_key *key = p11_object(slot, found[i], &is_private);
            REQUIRE(key != NULL && key->slot == slot && (key->current || !is_private));
            for (CK_ATTRIBUTE_TYPE type = 0; type < 0x700; type++) {
                uint8_t value[4];
                CK_ATTRIBUTE wanted = {type, NULL, 0};
                CK_RV rv = p11_attributes(found[i], &wanted, 1);
                CK_ATTRIBUTE small = {type, value, sizeof value};
                CK_RV other = p11_attributes(found[i], &small, 1);
                REQUIRE(rv != CKR_OK || other == (wanted.ulValueLen > sizeof value ? CKR_BUFFER_TOO_SMALL : CKR_OK));
            }
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct input input = {data, size};
    struct p11_welcome welcome;
    struct p11_refusal refusal;
    uint32_t credits = 0;
    while (input.left > 0) {
        uint8_t what = take_u8(&input);
        size_t len = take_u16(&input) % 1024;
        len = len < input.left ? len : input.left;
        /* On the heap and as long as it says, so that reading past its end is seen. */
        uint8_t *body = malloc(len > 0 ? len : 1);
        REQUIRE(body != NULL);
        take(&input, body, len);
        switch (what % 6) {
        case 0:
        case 1:
            (void)p11_read_welcome(body, len, what % 6 == 1, &welcome);
            break;
        case 2:
            (void)p11_read_keys(body, len);
            break;
        case 3:
            (void)p11_read_credit(body, len, &credits);
            break;
        case 4:
            (void)p11_read_goaway(body, len);
            break;
        default:
            if (p11_read_error(body, len, &refusal)) {
                REQUIRE(p11_rv_of(&refusal) != CKR_OK);
            }
        }
        free(body);
    }
    check_objects();
    p11_keys_free();
    return 0;
}
