BEGIN TRANSACTION;
CREATE TABLE approval (
                id INTEGER PRIMARY KEY AUTOINCREMENT, rotation_id BIGINT NOT NULL, approver TEXT NOT NULL, method TEXT NOT NULL,
                totp_step BIGINT, time_ns BIGINT NOT NULL, proof TEXT NOT NULL DEFAULT '');
INSERT INTO "approval" VALUES(1,1,'approval.approver','approval.method',NULL,1,'approval.proof');
CREATE TABLE audit_mark (
                name TEXT PRIMARY KEY, logged TEXT NOT NULL, pending TEXT NOT NULL, marked_ns BIGINT NOT NULL,
                restored TEXT NOT NULL);
INSERT INTO "audit_mark" VALUES('audit_mark.name','audit_mark.logged','audit_mark.pending',1,'audit_mark.restored');
CREATE TABLE backup (
                id INTEGER PRIMARY KEY AUTOINCREMENT, key_id TEXT NOT NULL, public_key TEXT NOT NULL, place TEXT NOT NULL, name TEXT NOT NULL,
                method TEXT NOT NULL, sha256 TEXT NOT NULL, made_ns BIGINT NOT NULL, drilled_ns BIGINT);
INSERT INTO "backup" VALUES(1,'backup.key_id','abababababababababababababababababababababababababababababababab','backup.place','backup.name','backup.method','backup.sha256',1,NULL);
CREATE TABLE bound (
                domain TEXT NOT NULL, position BIGINT NOT NULL, digest TEXT NOT NULL, holder TEXT NOT NULL,
                bound_ns BIGINT NOT NULL, mac TEXT NOT NULL, PRIMARY KEY (domain, position));
INSERT INTO "bound" VALUES('bound.domain',1,'cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd','bound.holder',1,'bound.mac');
CREATE TABLE desired_state (
                name TEXT PRIMARY KEY, value TEXT NOT NULL, reason TEXT NOT NULL, set_ns BIGINT NOT NULL);
INSERT INTO "desired_state" VALUES('desired_state.name','{}','desired_state.reason',1);
CREATE TABLE emergency_episode (
                id INTEGER PRIMARY KEY AUTOINCREMENT, began_ns BIGINT NOT NULL, first_ns BIGINT, latest_ns BIGINT NOT NULL,
                max_transactions BIGINT NOT NULL, max_seconds BIGINT NOT NULL,
                reserved BIGINT NOT NULL CHECK (reserved >= 0 AND reserved <= max_transactions),
                ended_ns BIGINT, end_reason TEXT);
INSERT INTO "emergency_episode" VALUES(1,1,NULL,1,100,1,1,2,NULL);
CREATE TABLE failover_event (
                id INTEGER PRIMARY KEY AUTOINCREMENT, time_ns BIGINT NOT NULL, kind TEXT NOT NULL, level_from TEXT, level_to TEXT, member TEXT,
                reason TEXT NOT NULL, details TEXT NOT NULL);
INSERT INTO "failover_event" VALUES(1,1,'failover_event.kind',NULL,NULL,NULL,'failover_event.reason','{}');
CREATE TABLE fleet (
                name TEXT PRIMARY KEY, epoch BIGINT NOT NULL, holder TEXT NOT NULL, host TEXT NOT NULL,
                claimed_ns BIGINT NOT NULL, renewals BIGINT NOT NULL, released BIGINT NOT NULL, timeline TEXT NOT NULL,
                system TEXT NOT NULL, incident BIGINT NOT NULL, reason TEXT NOT NULL, mark TEXT, held TEXT, renewed_by TEXT);
INSERT INTO "fleet" VALUES('fleet.name',1,'fleet.holder','fleet.host',1,1,1,'fleet.timeline','fleet.system',1,'fleet.reason',NULL,NULL,NULL);
CREATE TABLE fleet_floor (
                host TEXT NOT NULL, domain TEXT NOT NULL, position BIGINT NOT NULL, digest TEXT NOT NULL,
                PRIMARY KEY (host, domain));
INSERT INTO "fleet_floor" VALUES('fleet_floor.host','fleet_floor.domain',1,'cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd');
CREATE TABLE fleet_host (
                name TEXT PRIMARY KEY, instance TEXT NOT NULL, seen_ns BIGINT NOT NULL, state TEXT NOT NULL,
                incident BIGINT NOT NULL, retired BIGINT NOT NULL, note TEXT NOT NULL, order_claim TEXT, order_seize TEXT, order_release TEXT, order_drain TEXT);
INSERT INTO "fleet_host" VALUES('fleet_host.name','fleet_host.instance',1,'active',1,1,'fleet_host.note',NULL,NULL,NULL,NULL);
CREATE TABLE key_binding (digest TEXT PRIMARY KEY, public_key TEXT NOT NULL, until_ns BIGINT NOT NULL);
INSERT INTO "key_binding" VALUES('cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd','abababababababababababababababababababababababababababababababab',1);
CREATE TABLE key_domain (
                public_key TEXT PRIMARY KEY, domain TEXT NOT NULL, forms TEXT NOT NULL, bound_ns BIGINT NOT NULL,
                reason TEXT NOT NULL);
INSERT INTO "key_domain" VALUES('abababababababababababababababababababababababababababababababab','key_domain.domain','key_domain.forms',1,'key_domain.reason');
CREATE TABLE key_evidence (public_key TEXT PRIMARY KEY, document TEXT NOT NULL, made_ns BIGINT NOT NULL);
INSERT INTO "key_evidence" VALUES('abababababababababababababababababababababababababababababababab','key_evidence.document',1);
CREATE TABLE key_set (
                domain TEXT NOT NULL, serial BIGINT NOT NULL, note TEXT NOT NULL, PRIMARY KEY (domain, serial));
INSERT INTO "key_set" VALUES('key_set.domain',1,'key_set.note');
CREATE TABLE key_version (
                id INTEGER PRIMARY KEY AUTOINCREMENT, key_id TEXT NOT NULL, public_key TEXT NOT NULL, algorithm TEXT NOT NULL,
                label TEXT NOT NULL, members TEXT NOT NULL, origin TEXT NOT NULL,
                state TEXT NOT NULL CHECK (state IN ('pending', 'active', 'overlap', 'deactivated', 'destroyed')),
                created_ns BIGINT NOT NULL, base_ns BIGINT, activated_ns BIGINT, retire_ns BIGINT,
                deactivated_ns BIGINT, destroyed_ns BIGINT, note TEXT NOT NULL);
INSERT INTO "key_version" VALUES(1,'key_version.key_id','abababababababababababababababababababababababababababababababab','key_version.algorithm','key_version.label','["softhsm:a"]','key_version.origin','active',1,NULL,NULL,NULL,NULL,NULL,'key_version.note');
CREATE TABLE notice (
                id INTEGER PRIMARY KEY AUTOINCREMENT, time_ns BIGINT NOT NULL, kind TEXT NOT NULL, occasion TEXT NOT NULL,
                title TEXT NOT NULL, body TEXT NOT NULL);
INSERT INTO "notice" VALUES(1,1,'notice.kind','notice.occasion','notice.title','notice.body');
CREATE TABLE notice_delivery (
                id INTEGER PRIMARY KEY AUTOINCREMENT, notice_id BIGINT NOT NULL, target TEXT NOT NULL, attempts BIGINT NOT NULL,
                next_ns BIGINT NOT NULL, done_ns BIGINT, given_up_ns BIGINT, error TEXT NOT NULL);
INSERT INTO "notice_delivery" VALUES(1,1,'notice_delivery.target',1,1,NULL,NULL,'notice_delivery.error');
CREATE TABLE published (
                name TEXT PRIMARY KEY, first_position BIGINT NOT NULL, size BIGINT NOT NULL, signed TEXT NOT NULL,
                cosigned TEXT NOT NULL);
INSERT INTO "published" VALUES('published.name',1,1,'published.signed','published.cosigned');
CREATE TABLE role (
                name TEXT PRIMARY KEY, epoch BIGINT NOT NULL, holder TEXT NOT NULL, until_ns BIGINT NOT NULL);
INSERT INTO "role" VALUES('role.name',1,'role.holder',1);
CREATE TABLE rotation (
                id INTEGER PRIMARY KEY AUTOINCREMENT, cause TEXT NOT NULL, reason TEXT NOT NULL, slot_ns BIGINT, begun_ns BIGINT NOT NULL,
                ended_ns BIGINT, old_version BIGINT NOT NULL, new_version BIGINT NOT NULL,
                status TEXT NOT NULL
                    CHECK (status IN ('running', 'undoing', 'overlap', 'done', 'failed', 'aborted')),
                step TEXT NOT NULL, step_begun INTEGER NOT NULL, wait_ns BIGINT NOT NULL, tries BIGINT NOT NULL,
                aborted INTEGER NOT NULL, error TEXT NOT NULL);
INSERT INTO "rotation" VALUES(1,'rotation.cause','rotation.reason',NULL,1,2,1,1,'done','rotation.step',1,1,1,1,'rotation.error');
CREATE TABLE rotation_setting (name TEXT PRIMARY KEY, value TEXT NOT NULL);
INSERT INTO "rotation_setting" VALUES('rotation_setting.name','{}');
CREATE TABLE rotation_step (
                id INTEGER PRIMARY KEY AUTOINCREMENT, rotation_id BIGINT NOT NULL, time_ns BIGINT NOT NULL, step TEXT NOT NULL,
                outcome TEXT NOT NULL, details TEXT NOT NULL);
INSERT INTO "rotation_step" VALUES(1,1,1,'rotation_step.step','rotation_step.outcome','{}');
CREATE TABLE schema_version (
	version BIGINT NOT NULL, 
	applied_ns BIGINT NOT NULL, 
	PRIMARY KEY (version)
);
INSERT INTO "schema_version" VALUES(1,1796094256747437476);
INSERT INTO "schema_version" VALUES(2,1796094256766417024);
INSERT INTO "schema_version" VALUES(3,1796094256766921957);
INSERT INTO "schema_version" VALUES(4,1796094256767180272);
INSERT INTO "schema_version" VALUES(5,1796094256767396854);
INSERT INTO "schema_version" VALUES(6,1796094256767900665);
INSERT INTO "schema_version" VALUES(7,1796094256768478846);
INSERT INTO "schema_version" VALUES(8,1796094256781568539);
INSERT INTO "schema_version" VALUES(9,1796094256782051539);
INSERT INTO "schema_version" VALUES(10,1796094256782283675);
INSERT INTO "schema_version" VALUES(11,1796094256809793573);
INSERT INTO "schema_version" VALUES(12,1796094256810729738);
CREATE TABLE seal (
                name TEXT PRIMARY KEY, store TEXT NOT NULL, counter BIGINT NOT NULL, digests TEXT NOT NULL,
                mac TEXT NOT NULL);
CREATE TABLE snapshot (name TEXT PRIMARY KEY, value TEXT NOT NULL, written_ns BIGINT NOT NULL);
INSERT INTO "snapshot" VALUES('snapshot.name','{}',1);
CREATE TABLE spent (name TEXT PRIMARY KEY, minute BIGINT NOT NULL, amount BIGINT NOT NULL);
INSERT INTO "spent" VALUES('spent.name',1,1);
CREATE TABLE watermark (
                name TEXT PRIMARY KEY, floor BIGINT NOT NULL, high BIGINT NOT NULL, bits TEXT NOT NULL,
                reason TEXT NOT NULL, message TEXT, mac TEXT);
INSERT INTO "watermark" VALUES('watermark.name',1,1,'1','watermark.reason',NULL,NULL);
CREATE INDEX failover_event_time ON failover_event (time_ns);
CREATE UNIQUE INDEX emergency_episode_open ON emergency_episode ((1)) WHERE ended_ns IS NULL;
CREATE UNIQUE INDEX key_version_active ON key_version ((1)) WHERE state = 'active';
CREATE UNIQUE INDEX rotation_one ON rotation ((1)) WHERE status IN ('running', 'undoing');
CREATE INDEX rotation_step_rotation ON rotation_step (rotation_id);
CREATE UNIQUE INDEX backup_object ON backup (place, name);
CREATE UNIQUE INDEX approval_once ON approval (rotation_id, approver);
CREATE UNIQUE INDEX approval_code ON approval (approver, totp_step);
CREATE UNIQUE INDEX notice_occasion ON notice (occasion);
CREATE UNIQUE INDEX notice_delivery_once ON notice_delivery (notice_id, target);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('failover_event',1);
INSERT INTO "sqlite_sequence" VALUES('emergency_episode',1);
INSERT INTO "sqlite_sequence" VALUES('key_version',1);
INSERT INTO "sqlite_sequence" VALUES('rotation',1);
INSERT INTO "sqlite_sequence" VALUES('rotation_step',1);
INSERT INTO "sqlite_sequence" VALUES('backup',1);
INSERT INTO "sqlite_sequence" VALUES('approval',1);
INSERT INTO "sqlite_sequence" VALUES('notice',1);
INSERT INTO "sqlite_sequence" VALUES('notice_delivery',1);
COMMIT;
