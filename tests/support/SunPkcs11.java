import java.security.KeyStore;
import java.security.Provider;
import java.security.SecureRandom;
import java.security.Security;
import java.util.Collections;

/** Opens a token by Java's own PKCS #11 provider, by its slot's number. Prints what it finds. */
public class SunPkcs11 {
    public static void main(String[] given) throws Exception {
        String settings = "--name=hsmcore\nlibrary=" + given[0] + "\nslot=" + given[1] + "\n";
        Provider token = Security.getProvider("SunPKCS11").configure(settings);
        byte[] random = new byte[32];
        SecureRandom.getInstance("PKCS11", token).nextBytes(random);
        KeyStore keys = KeyStore.getInstance("PKCS11", token);
        keys.load(null, "any".toCharArray());
        System.out.println("ECDSA: " + (token.getService("Signature", "SHA256withECDSA") != null));
        System.out.println("entries: " + Collections.list(keys.aliases()));
    }
}
